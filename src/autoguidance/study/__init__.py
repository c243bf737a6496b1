"""Experiments: each a function from a configuration to records."""
