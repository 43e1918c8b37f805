"""This process: what it finds, what it may, what it says, how it ends. Knows nothing of passages.

environment     which variables `KALM_CACHE_*` count
openmp          threads of OpenMP, and fork
system          open files, errors of the operating system, file systems
stopping        SIGTERM, SIGHUP and Ctrl-C
stderr_log      log lines
progress_bar    a bar on the terminal
ray_connection  a connection to Ray
"""
