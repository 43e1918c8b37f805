"""The online side: an HTTP service over a published generation. Imports `kalm_cache`, never `indexer`."""
