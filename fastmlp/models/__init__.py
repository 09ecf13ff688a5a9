"""A trained network: predict, measure, save, load."""
