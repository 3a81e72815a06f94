"""Recipes with types and bounds."""
