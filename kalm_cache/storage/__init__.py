"""One sealed segment on disk: LMDB pages, records, locks. Knows bytes, not tensors.

Every record lies in a block, and `checksummed_block` verifies its checksum at each read.
"""
