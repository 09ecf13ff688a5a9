"""From data to a model: one, or many side by side."""
