"""Torture: indexes that are killed, cut off, refused and damaged, and what they must still hold then.

shim.c, shim.py       system calls counted, failed, torn, or the last thing that a process does
worker.py, client.py  a process that loads the models once and forks a child for each step; pool.py: several of them
operations.py         build, reindex, add, delete, fold, gc, rollback, repair; scenarios.py: from which state
content.py            everything that a reader finds, to be compared bit for bit
killing.py            SIGKILL before, in and after every call; powercut.py: what a disk may hold after a power cut
refusing.py           ENOSPC, EIO, EROFS, EACCES, no locks, jumping clocks, two at once
caching.py            what is done to a text cache; cache_points.py: it is killed, cut off, refused, or written by two;
                      cache_run.py: all of that
flipping.py           flipped bits, cut and missing files: what verify and queries say; damaging.py draws them
mangling.py           absurd values, deep nesting, other lengths in files that somebody sent; sending.py: what every
                      command makes of them; strangers.py draws them
random_kills.py       real `kalm-cache` commands killed at random; command_refusals.py: on a disk that refuses
swapping.py           generations swapped under a service while clients ask it
run.py                all of it: `make torture`; test_*.py: a part of it in `make test`
"""
