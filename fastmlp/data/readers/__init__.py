"""Readers of file formats: arrays, CSV tables, and folders of images."""
