"""Text -> vectors: the kinds of embedder, one file each."""
