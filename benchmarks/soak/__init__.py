"""The service under steady load while its index changes. Start it with `python -m benchmarks.soak`."""
