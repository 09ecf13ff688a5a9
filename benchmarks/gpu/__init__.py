"""The check of a machine with a GPU: carry.py prepares a folder for it, start.py runs there, check.py is what it starts."""
