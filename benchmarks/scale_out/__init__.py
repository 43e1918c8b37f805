"""Beyond one machine: what more encoders bring, what the process that drives them takes, and a router."""
