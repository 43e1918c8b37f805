"""From ten thousand to a million passages. Start it with `python -m benchmarks.scale`."""
