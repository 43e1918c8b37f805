"""Openly licensed text from package registries, by the kind of its source; `training/collect_text.py` runs it."""
