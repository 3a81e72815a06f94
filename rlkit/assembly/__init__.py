"""From a recipe to a run: everything is built here, once."""
