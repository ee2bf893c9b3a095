"""Replays traces against the real scheduler on a simulated machine, in virtual time."""
