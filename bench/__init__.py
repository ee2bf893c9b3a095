"""Benchmarks, each against a peer in the same run; `docs/benchmarks.md` describes them."""
