"""Judged collections and runs, from BEIR folders, ir_datasets, MTEB and TREC files."""
