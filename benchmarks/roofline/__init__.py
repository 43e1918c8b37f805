"""Matrix products against what the processor can do. Start it with `python -m benchmarks.roofline`."""
