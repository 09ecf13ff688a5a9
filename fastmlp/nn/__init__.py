"""Definitions: what a network, an activation, a loss, an update rule and a scaling are. No engine, no data."""
