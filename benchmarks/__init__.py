"""Speeds and peak memory of a run or of an untrained configuration: ``python -m benchmarks.run --help``."""
