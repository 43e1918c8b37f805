"""What a machine, its settings and an index are checked for before they serve. Changes nothing, downloads nothing."""

from kalm_cache.doctor.check import Check
from kalm_cache.doctor.diagnose import diagnose

__all__ = ["Check", "diagnose"]
