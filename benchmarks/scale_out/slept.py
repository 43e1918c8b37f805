"""`kalm-cache` with a decoder that sleeps: the rest of a service, on a machine that is busy with nothing else.

    SLEPT_MS_A_PAIR=26.4 python -m benchmarks.scale_out.slept serve --index DIR …

Several services share one machine here, and would share its cores; asleep they share nothing, as on machines of their
own. Margins are of the pair alone, so that all services agree.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from kalm_cache.cli import main as run
from kalm_cache.scoring.batching import Pair
from kalm_cache.scoring.query_side import QuerySide

MS_A_PAIR = "SLEPT_MS_A_PAIR"  # in the environment


def main() -> None:
    """Run the command line with every decode slept through."""
    seconds = float(os.environ[MS_A_PAIR]) / 1000

    def decode(_: QuerySide, batch: Sequence[Pair]) -> list[float]:
        time.sleep(seconds * len(batch))
        return [pair.size.pooled / 8 for pair in batch]

    QuerySide.decode = decode  # type: ignore[method-assign]
    run()


if __name__ == "__main__":
    main()
