"""Codecs and chunk sizes: bytes against quality. Start it with `python -m benchmarks.storage`."""
