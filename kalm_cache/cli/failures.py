"""What ends a command early -> one line on standard error and an exit code. Bugs keep their tracebacks."""

from __future__ import annotations

import sys

from kalm_cache.cli.streams import STDOUT
from kalm_cache.errors import KalmCacheError
from kalm_cache.process.stopping import Stopped, exit_code_of
from kalm_cache.process.system import way_out


def report_failure(error: BaseException, resumable: bool = False) -> int | None:
    """Say what went wrong, and return the exit code; `None` where it is a bug, of which nothing is said.

    Args:
        error: what was raised.
        resumable: the command goes on where it stopped when it is run again.
    """
    if isinstance(error, KeyboardInterrupt):
        name = f"stopped by {error}" if isinstance(error, Stopped) and exit_code_of(error) != 130 else "interrupted"
        return _say(name + "; what is stored is kept: run the same command to go on" * resumable, exit_code_of(error))
    if isinstance(error, KalmCacheError):
        return _say(f"error: {error}", error.exit_code)
    if isinstance(error, OSError):  # a full disk or a missing permission
        return _say(f"error: {_in_words(error)}", 1)
    if isinstance(error, MemoryError) or _is_lack_of_memory(error):
        return _say("error: out of memory; lower --batch-tokens, or raise the limit (ulimit -v, the container's)", 1)
    return None


def _is_lack_of_memory(error: BaseException) -> bool:
    """As libraries of C++ tell it, and the loader of these libraries."""
    words = ("allocate memory", "out of memory", "failed to map segment")
    return isinstance(error, RuntimeError | ImportError) and any(word in str(error) for word in words)


def _say(line: str, exit_code: int) -> int:
    sys.stderr.write(line + "\n")
    return exit_code


def _in_words(error: OSError) -> str:
    if "usable temporary directory" in str(error):
        return f"{error.strerror}; set TMPDIR to a folder that can be written"
    if error.strerror is None:
        return str(error)
    reason, advice = error.strerror[:1].lower() + error.strerror[1:], way_out(error)
    words = reason if error.filename is None else f"{error.filename}: {reason}"
    return f"{words}; {advice}" if advice and error.filename != STDOUT else words
