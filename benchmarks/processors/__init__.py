"""Every dtype on every class of processor that this one can pose. Start it with `python -m benchmarks.processors`."""
