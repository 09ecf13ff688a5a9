"""Preparation of images for prediction: files, inversion, and position of the drawing."""
