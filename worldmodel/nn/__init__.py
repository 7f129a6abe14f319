"""Blocks that know nothing of codes, data or environments."""
