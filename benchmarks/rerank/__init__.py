"""Scoring one query against many passages. Start it with `python -m benchmarks.rerank`."""
