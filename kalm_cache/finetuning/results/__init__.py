"""What comes of it: the merged checkpoint, and what it is worth on held-out queries."""
