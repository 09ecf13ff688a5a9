"""Settings of runs as data: their types, and the sources of their values."""
