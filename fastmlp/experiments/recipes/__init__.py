"""Published experiments as data, run and compared."""
