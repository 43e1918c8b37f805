"""Text files -> numbered lines, plain or compressed. Knows nothing of what a line holds."""
