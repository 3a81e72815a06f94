"""What a run uses when the recipe names no data and no model: small tasks and a small model that has half learned it."""
