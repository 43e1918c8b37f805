"""What a build can take from what is stored already, as it is or recoded, instead of encoding.

Segments are chosen here; the passages in them by `indexer/build/plan.py`.
"""
