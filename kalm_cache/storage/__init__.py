"""One sealed segment on disk: checksummed blocks, LMDB pages, records, locks. Knows bytes, not tensors."""
