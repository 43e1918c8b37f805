"""Learning: which lists a step takes, losses, the decoder with gradients, the loop, and what a kill leaves of it."""
