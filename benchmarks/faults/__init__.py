"""Fault injection: ``python -m benchmarks.faults --help``; docs/reliability.md has the results."""
