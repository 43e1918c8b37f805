"""Beyond one machine: what more encoders bring, and what the process that drives them takes."""
