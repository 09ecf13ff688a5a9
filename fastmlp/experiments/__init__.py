"""Runs with a folder: train, evaluate, predict, extract, and the published recipes."""
