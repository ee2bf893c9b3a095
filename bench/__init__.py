"""Measurements, each against a peer in the same run. `docs/benchmarks.md` says how and why."""
