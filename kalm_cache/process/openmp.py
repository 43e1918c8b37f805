"""OpenMP's threads and fork: a process that has computed can be forked, and its children compute.

Threads do not survive a fork, but GNU OpenMP's list of them does: a child would wait for ever for threads that are not
there. So the forking thread ends its own before, and both sides start new ones when they next need them.
Knows nothing of what is computed.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_HARD = 2  # omp_pause_hard: threads end, and their memory is freed


@cache
def survive_forks(extension: str) -> None:
    """Make forks safe for the OpenMP library that an extension module is linked with; a second call does nothing.

    Args:
        extension: file of the module. Each may bring an OpenMP library of its own.
    """
    try:
        library = ctypes.CDLL(extension)
        pause, set_threads = library.omp_pause_resource_all, library.omp_set_num_threads
    except (OSError, AttributeError):  # none, or LLVM's, which sees to forks itself
        return
    _Forks(pause, set_threads).register()


class _Forks:
    def __init__(self, pause: ctypes._NamedFuncPointer, set_threads: ctypes._NamedFuncPointer) -> None:
        self._pause, self._set_threads, self._threads_ended = pause, set_threads, False

    def register(self) -> None:
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._in_child)

    def _before(self) -> None:
        self._threads_ended = self._pause(_HARD) == 0

    def _after(self) -> None:
        self._threads_ended = False

    def _in_child(self) -> None:
        if not self._threads_ended:  # forked behind Python's back, as uWSGI does: no threads, no waiting
            self._set_threads(1)
        self._threads_ended = False
