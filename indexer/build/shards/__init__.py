"""A base of one or several segments. Of several: texts are shuffled to their shards, and shards share a first stage.

base          spec and corpus -> the segments of a base, published
shuffle       lines of a corpus -> a file of texts for each shard, with their ordinals
one_process   the shards of a base, one after the other in this process
"""
