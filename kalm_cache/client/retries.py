"""Whether to try again, and after how long. Knows nothing of sockets, and does not sleep.

Every request of the service reads and changes nothing, so that sending it twice does no harm.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from kalm_cache.client.failures import retry_after_seconds
from kalm_cache.client.reply import NoReply, Reply

RETRIED_STATUSES = (429, 503)
JITTER = 0.25  # so that clients who were sent away together do not come back together


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long to wait for a service that is busy (429), not ready (503) or not to be reached.

    Attributes:
        attempts: further tries after the first; 0 = none.
        first_wait_seconds: before the second try, doubled for each one after it, where the service says nothing.
        max_wait_seconds: no single wait is longer; where `Retry-After` asks for more, there is no further try.
        random: of [0, 1); what the jitter is taken from.
    """

    attempts: int = 3
    first_wait_seconds: float = 0.25
    max_wait_seconds: float = 10.0
    random: Callable[[], float] = random.random

    def wait_seconds(self, tries: int, outcome: Reply | NoReply) -> float | None:
        """How long to wait after `tries` tries, the last of which ended so; `None` = that is the end."""
        if tries > self.attempts or not _may_change(outcome):
            return None
        asked = retry_after_seconds(outcome) if isinstance(outcome, Reply) else None
        wait = self.first_wait_seconds * 2 ** (tries - 1) if asked is None else asked
        if asked is not None and asked > self.max_wait_seconds:
            return None
        return min(wait * (1 + JITTER * self.random()), self.max_wait_seconds)


def _may_change(outcome: Reply | NoReply) -> bool:
    return not outcome.timed_out if isinstance(outcome, NoReply) else outcome.status in RETRIED_STATUSES
