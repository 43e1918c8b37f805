"""Log lines to the present `sys.stderr`. Knows nothing of what is logged."""

from __future__ import annotations

import logging
import sys
from typing import Any


class StderrHandler(logging.StreamHandler[Any]):
    """Looks `sys.stderr` up at every line: a library or a test may replace it and close the old one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)
