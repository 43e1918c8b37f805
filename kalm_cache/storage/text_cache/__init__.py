"""The text cache's file: pooled states under the hash of what the encoder saw, bounded in bytes, shared by processes.

`TextCache` is what others use: `text_cache.py`. `cache_file.py` is its LMDB file, `cached_blocks.py` what is in it,
`write_behind.py` the thread that writes, `upkeep.py` what `kalm-cache cache` does. Knows nothing of codecs, models or
texts.
"""
