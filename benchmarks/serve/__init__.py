"""The service under load. Start it with `python -m benchmarks.serve`."""
