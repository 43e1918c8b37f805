"""One file for each group of commands of `kalm-cache`; `cli/app.py` registers each command by name."""
