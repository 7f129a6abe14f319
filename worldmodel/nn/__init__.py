"""Layers that are independent of codes, data and environments."""
