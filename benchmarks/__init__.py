"""Measurements, and the slow reference and random checkpoints that tests share with them."""
