"""Checks of a machine, its settings and an index before they serve. Changes nothing, downloads nothing.

`diagnose.py` holds the table of checks; `machine.py`, `service.py` and `index.py` make them.
"""

from kalm_cache.doctor.check import Check
from kalm_cache.doctor.diagnose import diagnose

__all__ = ["Check", "diagnose"]
