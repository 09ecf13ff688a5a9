"""Settings of `train` and `extract` runs: their definitions, their types, and the sources of their values."""
