"""What an actor's process logs, warnings and worse, on its way to the command's log. Knows nothing of actors."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

MOST = 100  # that wait; of more, the first are dropped


@dataclass(frozen=True, slots=True)
class Remark:
    """A line of a log."""

    level: int
    message: str


@dataclass(frozen=True, slots=True)
class Told:
    """What an actor's method returned, and what was logged in its process since the last answer."""

    answer: Any
    remarks: list[Remark]


class Remarks(logging.Handler):
    """Keeps what any logger of this process warns of, until it is taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._waiting: deque[Remark] = deque(maxlen=MOST)
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._waiting.append(Remark(record.levelno, record.getMessage()))

    def take(self) -> list[Remark]:
        """What came since the last time."""
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken
