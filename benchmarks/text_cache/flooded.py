"""`kalm-cache serve`, and beside it in its own process a text cache that is written to as fast as its writer can.

    python -m benchmarks.text_cache.flooded FLAG CACHE GIB SHAPE serve --text-cache CACHE …

While the file `FLAG` exists, records are put into the cache at `CACHE` faster than they are written, so that the
writing thread never waits; they come as states do, and are encoded on that thread. When it goes, how many were written,
and in which time, stands in a file beside it. `SHAPE` is that of `prepared.py`, as JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from functools import partial
from pathlib import Path

from benchmarks.text_cache.prepared import DISTINCT, Shape
from kalm_cache.cli import main as kalm_cache
from kalm_cache.scoring.text_states import WHOLE
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

LOOK_SECONDS = 0.01
QUEUE_BYTES = 16 << 20


def report_of(flag: Path) -> Path:
    """Where it stands what became of a flood."""
    return flag.with_suffix(".json")


def flood(flag: Path, folder: Path, gib: float, shape: Shape) -> None:
    """Write while the flag is there; never ends."""
    states = [shape.states(seed) for seed in range(DISTINCT)]
    cache = TextCache(TextCacheOptions(folder, int(gib * (1 << 30)), queue_bytes=QUEUE_BYTES, gives_way=True))
    namespace, numbers = cache.namespace({"benchmark": f"flood {time.time_ns()}"}), itertools.count()
    while True:
        while not flag.exists():
            time.sleep(LOOK_SECONDS)
        before, started = cache.counts, time.monotonic()
        while flag.exists():
            number, dropped = next(numbers), cache.counts.dropped
            some = states[number % DISTINCT]
            key = namespace.key(WHOLE, f"{number}".encode())
            cache.put(key, some.nbytes, partial(shape.record, some))
            if cache.counts.dropped > dropped:  # the queue is full: more would only cost this process time
                time.sleep(LOOK_SECONDS)
        cache.flush()
        seconds, after = time.monotonic() - started, cache.counts
        said = {
            "seconds": seconds,
            "written": after.written - before.written,
            "evicted": after.evicted - before.evicted,
            "dropped": after.dropped - before.dropped,
            "off": after.off,
        }
        unfinished = flag.with_suffix(".part")
        unfinished.write_text(json.dumps(said), "utf-8")
        unfinished.rename(report_of(flag))


def main() -> None:
    """Start the flood's thread, then the service."""
    flag, folder, gib, shape = sys.argv[1:5]
    arguments = (Path(flag), Path(folder), float(gib), Shape(**json.loads(shape)))
    threading.Thread(target=flood, args=arguments, daemon=True).start()
    sys.argv[1:] = sys.argv[5:]
    kalm_cache()


if __name__ == "__main__":
    main()
