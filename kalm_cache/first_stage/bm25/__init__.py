"""BM25: text -> terms -> postings on disk -> scores."""
