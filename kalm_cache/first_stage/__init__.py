"""The first stage: from a query to candidate document numbers, by FAISS, by BM25, or by both.

Importing this package imports none of faiss, bm25s, model2vec and sentence-transformers: they load on first use.
"""

from kalm_cache.first_stage.bm25 import BM25Index
from kalm_cache.first_stage.candidates import Candidates
from kalm_cache.first_stage.dense import DenseIndex
from kalm_cache.first_stage.embedder import Embedder, load_embedder
from kalm_cache.first_stage.first_stage import FirstStage, Mode
from kalm_cache.first_stage.fusion import reciprocal_rank_fusion

__all__ = [
    "BM25Index",
    "Candidates",
    "DenseIndex",
    "Embedder",
    "FirstStage",
    "Mode",
    "load_embedder",
    "reciprocal_rank_fusion",
]
