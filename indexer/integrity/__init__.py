"""Verify, repair and salvage: what is damaged, and what can be saved of it."""
