"""`KaLMCrossEncoder`: the `predict` and `rank` of sentence-transformers' `CrossEncoder`, over any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate
from kalm_cache.adapters.scorer import Backend, Scorer
from kalm_cache.arguments import PAIRS, as_list, check_fields, check_limit, check_pairs, check_text
from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.passage import ID_NAMES, TEXT_NAMES, OnMissing, first_present
from kalm_cache.scoring.ranking import best_first

if TYPE_CHECKING:
    from kalm_cache.reranker import KaLMReranker


class KaLMCrossEncoder:
    """A backend behind the signatures of a `CrossEncoder`.

    A document is a text, `{"doc_id"}` (or `{"id"}`) for a stored passage, or `{"doc_id", "title", "text"}`: its text
    is encoded only where the index does not hold the id and `on_missing` is `encode`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        reranker: KaLMReranker | None = None,
        on_missing: OnMissing = "encode",
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        """Wrap a `Client`, `PassageIndex` or `KaLMReranker`.

        Args:
            backend: what scores.
            reranker: beside a `PassageIndex`, what encodes texts.
            on_missing: `error`, or `encode` the text of what is not stored.
            prompts: instructions by name, for `prompt_name`.
            default_prompt_name: the name of the instruction for calls without a prompt.
            chunk_size: pooling ratio; `None` = the backend's own.
        """
        if on_missing == "skip":
            raise UsageError("on_missing='skip' leaves pairs without a score; choose error or encode")
        self.prompts, self.default_prompt_name = dict(prompts or {}), default_prompt_name
        self._scorer = Scorer(backend, reranker, on_missing, None, chunk_size)

    def predict(
        self,
        inputs: Any,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **ignored: Any,
    ) -> Any:
        """P(yes) of each (query, document) pair, in input order; of one pair, a scalar.

        Args:
            inputs: pairs, or one pair; lists, tuples or arrays of them.
            batch_size: ignored: the backend chooses its batches.
            show_progress_bar: ignored.
            activation_fn: of a tensor of margins (float64); `None` = P(yes).
            apply_softmax: refused: a pair has a single score.
            convert_to_numpy: an array (float64: no ties where float32 is 1.0 already), unless `convert_to_tensor`.
            convert_to_tensor: a tensor; where both are false, a list of floats.
            prompt: the instruction, what queries ask for.
            prompt_name: the name of one of `prompts`.
            ignored: `device`, `pool`, `chunk_size` (of processes), … of the original.

        Raises:
            UsageError: what is no pair of a query and a document, named by its position.
        """
        if apply_softmax:
            raise UsageError("apply_softmax needs several scores a pair; this model gives one")
        items = as_list(inputs, "inputs", PAIRS)
        single = bool(items) and isinstance(items[0], str)
        pairs = [items] if single else items
        scored = self._scored(pairs, self._instruction(prompt, prompt_name))
        scores = _converted(scored, activation_fn, convert_to_numpy, convert_to_tensor)
        return scores[0] if single else scores

    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **ignored: Any,
    ) -> list[dict[str, Any]]:
        """Documents by falling margin: `[{"corpus_id", "score", "text"?}]`, the `top_k` first ones.

        `text` is the document as it was given; further arguments are those of `predict`.

        Raises:
            UsageError: as `predict`; `documents` is no list, or `top_k` below 0.
        """
        documents, top_k = as_list(documents, "documents"), check_limit(top_k, "top_k", least=0)
        pairs = [(check_text(query, "query"), document) for document in documents]
        scored = self._scored(pairs, self._instruction(prompt, prompt_name))
        scores = _converted(scored, activation_fn, False, False)
        order = best_first([pair.margin for pair in scored], top_k)
        ranking = [{"corpus_id": i, "score": scores[i]} for i in order]
        if return_documents:
            ranking = [entry | {"text": documents[entry["corpus_id"]]} for entry in ranking]
        return ranking

    def _instruction(self, prompt: str | None, name: str | None) -> str | None:
        name = self.default_prompt_name if name is None else name
        if prompt is not None or name is None:
            return prompt
        if name not in self.prompts:
            raise UsageError(f"prompt_name is {name!r}; the prompts are {', '.join(map(repr, self.prompts)) or 'none'}")
        return self.prompts[name]

    def _scored(self, pairs: Sequence[Any], instruction: str | None) -> list[ScoredCandidate]:
        """Each pair's score, in the order of the pairs; pairs of one query are scored together."""
        positions: dict[str, list[int]] = {}
        checked = check_pairs(pairs)
        for i, (query, _) in enumerate(checked):
            positions.setdefault(query, []).append(i)
        scored: dict[int, ScoredCandidate] = {}
        for query, of_query in positions.items():
            candidates = [_candidate(checked[i][1], f"pairs[{i}][1]") for i in of_query]
            for candidate in self._scorer.score(query, candidates, instruction):
                scored[of_query[candidate.index]] = candidate
        lost = [i for i in range(len(checked)) if i not in scored]
        if lost:
            raise DamagedRecordError(
                f"pair {lost[0]} has no score: its stored passage is damaged; run kalm-cache verify"
            )
        return [scored[i] for i in range(len(checked))]


def _candidate(document: Any, name: str) -> Candidate:
    fields = check_fields(document, name)
    if isinstance(fields, str):
        return Candidate(None, fields)
    id_name, text_name = first_present(("doc_id", *ID_NAMES), fields), first_present(TEXT_NAMES, fields)
    if id_name is None and text_name is None:
        raise UsageError(f"{name} has neither an id nor a text; expected a text or {{'doc_id', 'text'}}")
    rest = {field: value for field, value in fields.items() if field not in ID_NAMES}
    return Candidate(None if id_name is None else fields[id_name], None if text_name is None else rest)


def _converted(
    scored: Sequence[ScoredCandidate], activation: Callable[..., Any] | None, numpy: bool, tensor: bool
) -> Any:
    if activation is None and not tensor:
        scores: Any = [pair.score for pair in scored]
    else:
        import torch

        values = [pair.score if activation is None else pair.margin for pair in scored]
        scores = torch.tensor(values, dtype=torch.float64)
        scores = scores if activation is None else activation(scores)
    if tensor:
        return scores
    if numpy:
        from numpy import asarray, float64

        return asarray(scores, dtype=float64)
    return scores if isinstance(scores, list) else scores.tolist()
