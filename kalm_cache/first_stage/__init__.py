"""The first stage: a query → the ordinals of candidate passages, by FAISS, by BM25, or by both.

Importing this package loads none of faiss, PyStemmer, model2vec and sentence-transformers: they load on first use.
"""

from kalm_cache.first_stage.bm25.bm25_index import BM25Index, ReusedDocuments
from kalm_cache.first_stage.bm25.collection import Collection, CollectionStatistics
from kalm_cache.first_stage.candidates import Candidates
from kalm_cache.first_stage.dense.dense_index import DenseIndex, DenseInfo
from kalm_cache.first_stage.dense.faiss_types import DenseChoice
from kalm_cache.first_stage.dense.shards import convert_shards
from kalm_cache.first_stage.embedders.embedder import Embedder, load_embedder
from kalm_cache.first_stage.first_stage import FirstStage, FirstStageSet, Mode, list_depth
from kalm_cache.first_stage.fusion import fuse, z_score_fusion, z_scores
from kalm_cache.first_stage.multi_index import merge
from kalm_cache.first_stage.selection import Selection

__all__ = [
    "BM25Index",
    "Candidates",
    "Collection",
    "CollectionStatistics",
    "DenseChoice",
    "DenseIndex",
    "DenseInfo",
    "Embedder",
    "FirstStage",
    "FirstStageSet",
    "Mode",
    "ReusedDocuments",
    "Selection",
    "convert_shards",
    "fuse",
    "list_depth",
    "load_embedder",
    "merge",
    "z_score_fusion",
    "z_scores",
]
