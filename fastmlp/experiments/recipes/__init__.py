"""Recipes: published experiments as TOML files, and functions that run, compare and plot them."""
