"""The check of a machine with a GPU: carry.py prepares a folder for it, start.py runs there, check.py is what it starts."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
