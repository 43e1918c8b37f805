"""The command line `kalm-cache`: the one place that composes indexer, core and service. Each command imports lazily."""

from kalm_cache.cli.entry import main

__all__ = ["main"]
