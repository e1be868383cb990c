"""Benchmarks: many stories or clips, made, measured and written to result.json."""
