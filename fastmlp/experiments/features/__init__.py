"""Runs with images: train a convolutional network, extract its features, plot figures, and train on the features."""
