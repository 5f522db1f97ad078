"""Torture: random operations on a cluster, recorded and judged. `plan` says what is done, `round` does it, `run` repeats it."""
