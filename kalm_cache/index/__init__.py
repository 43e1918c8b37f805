"""An open index: a published generation with its decoder, asked by query or by id."""

from kalm_cache.index.passage_index import Answer, PassageIndex, SearchResult, Shortlist

__all__ = ["Answer", "PassageIndex", "SearchResult", "Shortlist"]
