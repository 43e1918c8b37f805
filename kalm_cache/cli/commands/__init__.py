"""One file for each group of commands of `kalm-cache`."""
