"""Query-passage pairs -> margins, whether a passage is stored or raw. Knows nothing of HTTP.

This is the seam for a batcher: what one request asks of the decoder is one call of `QuerySide.margins`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kalm_cache.index import DECODE_BATCH, PassageIndex
from kalm_cache.model.prompts import Tokens
from kalm_cache.pooling import PooledPassage
from kalm_cache.prefix_tier import KeptPassage
from kalm_cache.settings import Settings
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
    """Margins in the order asked for, and what they cost in real tokens (a prompt counts for each of its pairs)."""

    margins: list[float]
    prompt_tokens: int
    passage_tokens: int
    query_truncated: bool


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
        pooled = self._passages(dict.fromkeys(passages), list(prompts.values()), instruction, chunk_size)
        margins = self.index.query_side.margins(
            [prompts[query] for query in queries], [pooled[passage].states for passage in passages], DECODE_BATCH
        )
        return Scores(
            margins,
            prompt_tokens=sum(len(prompts[query].ids) for query in queries),
            passage_tokens=sum(pooled[passage].tokens for passage in passages),
            query_truncated=any(prompt.truncated for prompt in prompts.values()),
        )

    def _passages(
        self, passages: Iterable[Stored | Raw], prompts: Sequence[Tokens], instruction: str, chunk_size: int | None
    ) -> dict[Stored | Raw, PooledPassage | KeptPassage]:
        distinct = list(passages)
        stored = [passage for passage in distinct if isinstance(passage, Stored)]
        raw = [passage for passage in distinct if isinstance(passage, Raw)]
        read = self._read([passage.doc_id for passage in stored], prompts, instruction, chunk_size)
        encoded = self._encode([passage.text for passage in raw], chunk_size)
        return dict(zip((*stored, *raw), (*read, *encoded), strict=True))

    def _read(
        self, doc_ids: list[str], prompts: Sequence[Tokens], instruction: str, chunk_size: int | None
    ) -> Sequence[PooledPassage | KeptPassage]:
        if not doc_ids:
            return []  # a ratio that does not fit the stored states is no error where none are asked for
        return self.index.passages(
            doc_ids, prompts, instruction, self.settings.system_instruction, chunk_size=chunk_size
        )

    def _encode(self, texts: list[str], chunk_size: int | None) -> list[PooledPassage]:
        if not texts:
            return []
        if self.documents is None:
            raise EncoderOffError
        return self.documents.pooled(texts, chunk_size=chunk_size)
