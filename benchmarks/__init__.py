"""Measurements, and the slow reference and random checkpoints that tests share with them. Never imported by kalm_cache."""
