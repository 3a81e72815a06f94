"""What a run uses when the recipe names no data and no model: a small maths task and a small model that has half learned it."""
