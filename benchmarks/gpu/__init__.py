"""Check of fastmlp on a machine with a GPU. carry.py prepares a folder; there, start.py unpacks it and runs check.py."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # root of the repository
