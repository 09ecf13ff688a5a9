"""Checkpoints of training runs: their files, the checks before a run is resumed, and the repetition of its last epochs."""
