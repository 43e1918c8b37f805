"""How good the answers of an index are, on judged queries. Knows nothing of how the index was built."""

from kalm_cache.evaluation.collections.beir import BeirTask, load_beir
from kalm_cache.evaluation.evaluate import evaluate
from kalm_cache.evaluation.reports.report import EvaluationReport

__all__ = ["BeirTask", "EvaluationReport", "evaluate", "load_beir"]
