"""Log lines on what `sys.stderr` is at the time. Knows nothing of what is logged."""

from __future__ import annotations

import logging
import sys
from typing import Any


class StderrHandler(logging.StreamHandler[Any]):
    """Looks for `sys.stderr` at every line: another program in the process may replace it, and close the old one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)
