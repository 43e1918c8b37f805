"""Query-passage pairs -> margins, whether a passage is stored or raw. Knows nothing of HTTP.

This is the seam for a batcher: what one request asks of the decoder is one call of `QuerySide.margins`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kalm_cache.errors import DamagedRecordError
from kalm_cache.index import DECODE_BATCH, PassageIndex, ReadPassages
from kalm_cache.model.prompts import Tokens
from kalm_cache.pooling import PooledPassage
from kalm_cache.prefix_tier import KeptPassage
from kalm_cache.settings import Settings
from kalm_cache.state_reader import Damaged
from query_service.documents import DocumentEncoder
from query_service.errors import EncoderOffError


@dataclass(frozen=True, slots=True)
class Stored:
    """A passage that the index holds."""

    doc_id: str


@dataclass(frozen=True, slots=True)
class Raw:
    """A passage that came with the request."""

    text: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Margins in the order asked for, and what they cost in real tokens (a prompt counts for each of its pairs).

    A margin is `None` where the stored passage is damaged; `damaged` names these.
    """

    margins: list[float | None]
    prompt_tokens: int
    passage_tokens: int
    query_truncated: bool
    damaged: list[Damaged]

    def require_whole(self) -> list[float]:
        """The margins, where every pair must have one. Raises `DamagedRecordError`."""
        if self.damaged:
            raise DamagedRecordError(self.damaged[0].problem)
        return [margin for margin in self.margins if margin is not None]


@dataclass(frozen=True, slots=True)
class Scorer:
    """One index, the encoder for raw documents unless it is off, and what holds where a request does not say."""

    index: PassageIndex
    documents: DocumentEncoder | None
    settings: Settings

    @property
    def model(self) -> str:
        """The model's name as clients see it: of a local folder its last part, not where it lies."""
        name = self.index.generation.manifest.model
        return name.rstrip("/").rpartition("/")[2] if name.startswith("/") else name

    @property
    def index_version(self) -> str:
        """The name of the generation that is served."""
        return self.index.generation.manifest.generation

    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[Stored | Raw],
        *,
        instruction: str | None = None,
        chunk_size: int | None = None,
    ) -> Scores:
        """The margin of each (query, passage) pair. Equal queries are tokenised once, equal passages read once.

        Raises:
            EncoderOffError: a raw passage, and no encoder.
            UnknownIdError: ids that the index does not hold.
            UsageError: a chunk size that is no multiple of the stored one.
        """
        instruction = self.settings.instruction if instruction is None else instruction
        prompts = {
            query: self.index.query_side.prompt(query, instruction, self.settings.system_instruction)
            for query in dict.fromkeys(queries)
        }
        pooled, damaged = self._passages(dict.fromkeys(passages), list(prompts.values()), instruction, chunk_size)
        pairs = [(prompts[query], passage) for query, passage in zip(queries, passages, strict=True)]
        whole = [(prompt, pooled[passage]) for prompt, passage in pairs if passage in pooled]
        margins = iter(
            self.index.query_side.margins([one for one, _ in whole], [one.states for _, one in whole], DECODE_BATCH)
        )
        return Scores(
            [next(margins) if passage in pooled else None for _, passage in pairs],
            prompt_tokens=sum(len(prompt.ids) for prompt, _ in whole),
            passage_tokens=sum(passage.tokens for _, passage in whole),
            query_truncated=any(prompt.truncated for prompt in prompts.values()),
            damaged=damaged,
        )

    def _passages(
        self, passages: Iterable[Stored | Raw], prompts: Sequence[Tokens], instruction: str, chunk_size: int | None
    ) -> tuple[dict[Stored | Raw, PooledPassage | KeptPassage], list[Damaged]]:
        distinct = list(passages)
        stored = [passage for passage in distinct if isinstance(passage, Stored)]
        raw = [passage for passage in distinct if isinstance(passage, Raw)]
        read = self._read([passage.doc_id for passage in stored], prompts, instruction, chunk_size)
        whole = [stored[i] for i in read.positions]
        encoded = self._encode([passage.text for passage in raw], chunk_size)
        return dict(zip((*whole, *raw), (*read.passages, *encoded), strict=True)), read.damaged

    def _read(
        self, doc_ids: list[str], prompts: Sequence[Tokens], instruction: str, chunk_size: int | None
    ) -> ReadPassages:
        if not doc_ids:  # a ratio that does not fit the stored states is no error where none are asked for
            return ReadPassages([], [], [])
        return self.index.whole_passages(
            doc_ids, prompts, instruction, self.settings.system_instruction, chunk_size=chunk_size
        )

    def _encode(self, texts: list[str], chunk_size: int | None) -> list[PooledPassage]:
        if not texts:
            return []
        if self.documents is None:
            raise EncoderOffError
        return self.documents.pooled(texts, chunk_size=chunk_size)
