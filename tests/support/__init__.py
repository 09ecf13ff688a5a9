"""Helpers shared by tests; test modules do not import each other."""
