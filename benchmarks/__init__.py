"""Speeds and peak memory of a run, or of any configuration without training: ``python -m benchmarks.run --help``."""
