"""`PassageIndex`: a published generation, read-only: first stage, then cached rerank. Never loads the encoder.

A damaged record costs an answer that passage and no more: it is left out and named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from kalm_cache.arguments import check_count, check_doc_ids, check_limit, check_probability, check_text, check_weight
from kalm_cache.calibration import FittedCalibration
from kalm_cache.codec import get_codec
from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.first_stage import Candidates, Mode, Selection, fuse
from kalm_cache.index.opening import MEAN, IndexParts, OpenOptions, open_parts
from kalm_cache.index.stored_metadata import StoredMetadata
from kalm_cache.index.visible_segments import VisibleSegments
from kalm_cache.metadata import Filter
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, Prompt
from kalm_cache.passage import PassageTemplate
from kalm_cache.scoring.cached_passages import CachedPassages
from kalm_cache.scoring.pipeline import InlineDriver, RankingRules, Shortlist, rerank, run_inline
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.ranking import Answer, SearchResult
from kalm_cache.scoring.shared_prefix import SAMPLE, MeanPrefixes
from kalm_cache.scoring.state_reader import StateReader

__all__ = ["Answer", "PassageIndex", "SearchResult", "Shortlist"]

logger = logging.getLogger(__name__)


class PassageIndex:
    """One generation with the decoder that answers over it. Use as a context manager, or `close()` it.

    `decoder`: which one that is; `shared_prefix`: `mean` or `isolated` where prompts share it; `calibration`: of
    margins that are computed so, if there is one. `stored` reads its passages, step by step; `damaged_reads` counts
    passages and texts that answers had to do without.
    """

    def __init__(self, parts: IndexParts, whole: PassageIndex | None = None) -> None:
        """The index takes over what `open_parts` has opened, and closes it. `whole`: of which this is a view."""
        self._parts, self._whole = parts, whole
        self.generation, self.store, self.first_stage = parts.generation, parts.store, parts.first_stage
        self.metadata = parts.metadata
        self.decoder, self.query_side, self.embedder = parts.decoder, parts.query_side, parts.embedder
        self.shared_prefix = parts.shared_prefix
        self.calibration = self._fitting(parts.generation.manifest.calibration)
        self.chunk_size, self.prefix_cache = parts.chunk_size, parts.prefix_cache
        self.damaged_reads = 0
        stored = parts.generation.manifest.fingerprint
        reader = StateReader(parts.store, get_codec(stored.codec), stored.chunk_size)
        means = None
        if self.shared_prefix == MEAN:
            means = MeanPrefixes(reader, parts.query_side, parts.store.sample(SAMPLE), self._count_damage)
        self.stored = CachedPassages(
            parts.generation.name + parts.view,
            reader,
            parts.query_side,
            parts.chunk_size,
            self._count_damage,
            parts.prefix_cache,
            parts.decoder.digest,
            means,
        )

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        decoder: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        codec: str | None = None,
        chunk_size: int | None = None,
        passage_template: str | None = None,
        query_max_length: int = 512,
        prefix_cache_gib: float = 0.0,
        prefix_cache_dtype: str = "bfloat16",
        shared_prefix: Literal["mean"] | None = None,
        check_first_stage: bool = True,
        shards: Sequence[int] | None = None,
        reuse_from: PassageIndex | None = None,
    ) -> PassageIndex:
        """Open the live generation of an index folder.

        Args:
            folder: what `kalm-cache index --index` wrote.
            model: `None` = the model that the manifest names; another location of the same weights is fine.
            decoder: a checkpoint with the same encoder, whose decoder answers in place of the one that is set; see
                `kalm-cache decoder set`. `None` = the one that is set.
            device: `None` = CUDA when there is one.
            dtype: of the decoder; `None` = bfloat16 where it is native (CUDA, AMX, AVX-512 BF16), else float32.
            codec: checked against the index when given.
            chunk_size: default pooling ratio of answers: the stored one or a multiple of it.
            passage_template: checked against the index when given.
            query_max_length: tokens of a query that count.
            prefix_cache_gib: GiB of memory for passages' keys and values under a prompt's prefix; 0 = none.
            prefix_cache_dtype: what these are stored in: float32, bfloat16, int8.
            shared_prefix: `mean`: prompt tokens before the query have the same keys and values for all passages, their
                mean over some of the index's, so that they cost nothing. Margins differ a little; there is no prefix
                cache then. `None` = each passage its own.
            check_first_stage: read its files once, so that a flipped bit in them is an error and not another ranking.
            shards: the numbers of those that are opened; `None` = all. Passages of others are unknown then.
            reuse_from: an open index of an earlier generation. Its decoder and embedder are used again where the new
                one was built with the same, and its prefix cache goes on; `device`, `dtype` and the like are then its
                own.

        Raises:
            IndexNotFoundError: nothing has been published there.
            StoreError: a file is missing or damaged.
            IndexMismatchError: model, decoder, codec, chunk size, template or shards do not fit what is stored; says
                both sides.
            UsageError: `shared_prefix` is not known, or some shards alone are opened.
        """
        options = OpenOptions(
            model,
            decoder,
            device,
            dtype,
            codec,
            check_limit(chunk_size, "chunk_size", least=None),
            passage_template,
            check_count(query_max_length, "query_max_length"),
            prefix_cache_gib,
            prefix_cache_dtype,
            shared_prefix,
            check_first_stage,
            None if shards is None else tuple(shards),
        )
        return cls(open_parts(Path(folder), options, reuse_from._parts if reuse_from else None))

    def __enter__(self) -> PassageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the store, and let gc have the generation; the index is unusable after it."""
        self.store.close()
        if self._whole is None:
            self._parts.lock.release()

    def within(self, filter: Mapping[str, Any]) -> PassageIndex:
        """The same index as if it held the passages alone that match a filter: no answer has or knows of others.

        It shares files, decoder and prefix cache, none of whose entries it has in common with others, and is of use as
        long as this one is open. Raises `UsageError` as `search`.
        """
        selection = Selection(self.metadata.matching(self.metadata.parse(filter)))
        store = VisibleSegments(self.store, selection)
        parts = replace(
            self._parts,
            store=store,
            metadata=StoredMetadata(store, self.metadata),
            first_stage=self.first_stage.selecting(selection),
            view=f"{self._parts.view}/{json.dumps(filter, sort_keys=True)}",
        )
        return PassageIndex(parts, self)

    def warm_up(self, before: PassageIndex | None = None) -> None:
        """Search and read once, so that what is loaded at the first use is loaded before a query. Decodes no pair.

        The prefixes that prompts share in `before`, the generation that this one takes over from, are computed.
        """
        shortlist = self.find("", 1)
        with suppress(DamagedRecordError):
            self.pooled(shortlist.doc_ids)
        if self.stored.means is not None and before is not None and before.stored.means is not None:
            for prefix, chunk_size in before.stored.means.known:
                with suppress(UsageError):  # it was of another stored chunk size
                    self.stored.means.mean(prefix, chunk_size)

    def __reduce__(self) -> NoReturn:
        """An open index is files, maps and a lock: these stay in their process, and in those that it forks."""
        raise TypeError("an open PassageIndex cannot be pickled for another process: open it there, from its folder")

    @property
    def passage_template(self) -> PassageTemplate:
        """How the fields of a record were made its passage, and are in documents that are compared with it."""
        return PassageTemplate(self.generation.manifest.passage_template)

    def __len__(self) -> int:
        return len(self.store)

    def search(
        self,
        query: str,
        *,
        k: int = 100,
        top_n: int | None = 10,
        first_stage: Mode | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        chunk_size: int | None = None,
        first_stage_weight: float | Literal["auto"] = 0.0,
        min_probability: float | None = None,
        filter: Mapping[str, Any] | None = None,
        fields: Sequence[str] = (),
        with_text: bool = True,
    ) -> Answer:
        """The `top_n` best of the first stage's `k` candidates, by the reranker's margin.

        Args:
            query: the question, as text.
            k: how many candidates are reranked.
            top_n: how many are returned; `None` = all.
            first_stage: `dense`, `bm25` or `fused`; `None` = the best that the index has.
            instruction: what the query asks for.
            system_instruction: the prompt's first line.
            chunk_size: pooling ratio of this answer; `None` = the index's default.
            first_stage_weight: of the first stage's z-scores, added to margins in ordering; see `interpolate`. `auto` =
                the one that `kalm-cache calibrate` found for the chunk size.
            min_probability: leave results with a lower `probability` out; takes a calibration. `None` = none.
            filter: which passages count, by their metadata; see `kalm_cache.metadata.filters`. The `k` candidates are
                the best of these, however few they are.
            fields: names of metadata that results have in `SearchResult.metadata`; `*` = all of it.
            with_text: fill `SearchResult.text`, where the index keeps texts.

        Raises:
            UsageError: a field that the index does not have, or a filter that does not fit it; a count below 1, a
                weight that is no number of 0 or more, a mode that was not built; `auto` or `min_probability` without a
                calibration at the chunk size.
        """
        k, top_n = check_count(k, "k"), check_limit(top_n, "top_n")
        prompt = _prompt(query, instruction, system_instruction)
        options = replace(
            self._rules(chunk_size, top_n, min_probability, with_text, fields),
            first_stage_weight="auto"
            if first_stage_weight == "auto"
            else check_weight(first_stage_weight, "first_stage_weight"),
        )
        driver, checked = InlineDriver(), None if filter is None else self.metadata.parse(filter)
        shortlist = run_inline(driver.read("first_stage", lambda: self.find(prompt.query, k, first_stage, checked)))
        return run_inline(rerank(driver, self.stored, prompt, shortlist, options))

    def rerank(
        self,
        query: str,
        ids: Sequence[str | int],
        *,
        top_n: int | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        chunk_size: int | None = None,
        min_probability: float | None = None,
        filter: Mapping[str, Any] | None = None,
        fields: Sequence[str] = (),
        with_text: bool = True,
    ) -> Answer:
        """Rank stored passages for a query by their ids alone: no text is read to score them, no encoder runs.

        An id is what the corpus takes as one: the number 101 means "101". Damaged passages are left out, and named in
        the answer. So passages are left out that the `filter` does not match; `filter`, `fields`: as of `search`.

        Raises:
            UnknownIdError: ids that the index does not hold.
            UsageError: `ids` is no list of ids, or `top_n` below 1; a filter or fields that do not fit the index;
                `min_probability` without a calibration at the chunk size.
        """
        prompt = _prompt(query, instruction, system_instruction)
        options = self._rules(chunk_size, check_limit(top_n, "top_n"), min_probability, with_text, fields)
        doc_ids = check_doc_ids(ids)
        if filter is not None:
            doc_ids = self._matching(doc_ids, self.metadata.parse(filter))
        return run_inline(rerank(InlineDriver(), self.stored, prompt, Shortlist(doc_ids), options))

    def margins(
        self,
        query: str,
        ids: Sequence[str | int],
        *,
        instruction: str = DEFAULT_INSTRUCTION,
        system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
        chunk_size: int | None = None,
    ) -> list[float]:
        """The margin of each stored passage for a query, in the order of `ids`.

        Raises:
            UnknownIdError: ids that the index does not hold.
            UsageError: `ids` is no list of ids.
            DamagedRecordError: a record fails its checksum.
        """
        doc_ids, chunk_size = check_doc_ids(ids), check_limit(chunk_size, "chunk_size", least=None)
        prompt = self.query_side.tokenize(_prompt(query, instruction, system_instruction))
        passages = self.stored.read(doc_ids, [prompt], chunk_size)
        [prompt] = self.stored.share([prompt], chunk_size)
        side, states = self.query_side, [passage.states for passage in passages]
        return side.margins([prompt] * len(doc_ids), states, side.batch_pairs)

    def find(self, query: str, k: int, first_stage: Mode | None = None, filter: Filter | None = None) -> Shortlist:
        """The first stage's best `k` passages, of those that match the filter.

        `first_stage` `None` = the best mode that the index has.
        """
        mode = first_stage or self.first_stage.modes[-1]
        return replace(self.name(fuse(self.find_lists(query, k, mode, filter), k)), first_stage=mode)

    def find_lists(
        self, query: str, k: int, first_stage: Mode | None = None, filter: Filter | None = None
    ) -> tuple[Candidates, ...]:
        """The lists that `find` fuses; those of several parts of an index are merged first, see `FirstStage.lists`."""
        stage = self.first_stage
        if filter is not None:
            stage = stage.selecting(Selection(self.metadata.matching(filter)))
        return stage.lists([check_text(query, "query")], k, first_stage or stage.modes[-1])[0]

    def name(self, candidates: Candidates) -> Shortlist:
        """Candidates with their ids; those whose id cannot be read are left out, and named as damaged."""
        doc_ids = self.store.find_doc_ids(candidates.ordinals.tolist())
        self._count_damage([str(doc_id) for doc_id in doc_ids if isinstance(doc_id, DamagedRecordError)])
        named = {i: doc_id for i, doc_id in enumerate(doc_ids) if isinstance(doc_id, str)}
        nameless = [f"number {ordinal}" for i, ordinal in enumerate(candidates.ordinals) if i not in named]
        rows = list(named)
        return Shortlist(list(named.values()), Candidates(candidates.ordinals[rows], candidates.scores[rows]), nameless)

    def find_texts(self, doc_ids: Sequence[str | int]) -> list[str | DamagedRecordError | None]:
        """The text of each id, `None` where the index keeps none; damage is in its place, logged and counted."""
        texts = self.store.find_texts(check_doc_ids(doc_ids, "doc_ids"))
        self._count_damage([str(text) for text in texts if isinstance(text, DamagedRecordError)])
        return texts

    def pooled(self, ids: Sequence[str | int], *, chunk_size: int | None = None) -> list[PooledPassage]:
        """Stored passages ready for the decoder, in the order of `ids`; their states are float32 on the CPU.

        Raises:
            UnknownIdError: ids that the index does not hold.
            DamagedRecordError: a record fails its checksum.
            UsageError: a chunk size that is no multiple of the stored one; `ids` is no list of ids.
        """
        return self.stored.reader.read(check_doc_ids(ids), self.chunk_size if chunk_size is None else chunk_size)

    def _fitting(self, fitted: FittedCalibration | None) -> FittedCalibration | None:
        """A calibration of margins as this index computes them, or none."""
        if fitted is None or (fitted.decoder, fitted.shared_prefix) != (self.decoder.digest, self.shared_prefix):
            return None
        return fitted

    def _rules(
        self,
        chunk_size: int | None,
        top_n: int | None,
        min_probability: float | None,
        with_text: bool,
        fields: Sequence[str],
    ) -> RankingRules:
        names = self.metadata.check_fields(fields)
        return RankingRules(
            check_limit(chunk_size, "chunk_size", least=None),
            top_n,
            find_texts=self.find_texts if with_text else None,
            find_metadata=(lambda doc_ids: self.metadata.values(doc_ids, names)) if fields else None,
            calibration=self.calibration,
            min_probability=check_probability(min_probability, "min_probability"),
        )

    def _matching(self, doc_ids: Sequence[str], filter: Filter) -> list[str]:
        """The ids of passages that match; those that the index does not hold stay, to be named."""
        matches = self.metadata.matches(doc_ids, filter)
        return [doc_id for doc_id, is_match in zip(doc_ids, matches, strict=True) if is_match is not False]

    def _count_damage(self, problems: Sequence[str]) -> None:
        self.damaged_reads += len(problems)
        if self._whole is not None:
            self._whole.damaged_reads += len(problems)
        for problem in problems:
            logger.error("an answer does without a passage: %s", problem)


def _prompt(query: str, instruction: str, system_instruction: str) -> Prompt:
    return Prompt(
        check_text(query, "query"),
        check_text(instruction, "instruction"),
        check_text(system_instruction, "system_instruction"),
    )
