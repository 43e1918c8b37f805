"""Text -> token ids, exactly as KaLM-Reranker-V1 was trained. Knows nothing of models.

Source: the reference implementation's templates (KaLM-Reranker-V1 model cards).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from kalm_cache.errors import CheckpointError, UsageError
from kalm_cache.model.counted_text import Tokens as Tokens  # what this module makes
from kalm_cache.model.counted_text import countable_chars, first_offsets, first_tokens
from kalm_cache.process.system import one_line

DEFAULT_INSTRUCTION = "Given a query, retrieve documents that answer the query."
DEFAULT_SYSTEM_INSTRUCTION = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
PASSAGE_PREFIX = "<Document>: "
PASSAGE_TEMPLATE = PASSAGE_PREFIX + "{document}"
PROMPT_TEMPLATE = (
    "<bos><start_of_turn>user\n{system}\n\n<Instruct>: {instruction}\n<Query>: {query}<end_of_turn>\n"
    "<start_of_turn>model\n\n\n\n"
)

CutSide = Literal["left", "right"]  # where too long a passage loses tokens: at its start, or at its end
UNKNOWN = "\u2603 \u0378"  # a tokenizer must have tokens for all texts, these too
# queries that begin with a letter, a digit, a sign, …: each may merge with the token before it in a way of its own
_PROBES = ("a", "1", "?", "The", "é", "\n", "日")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a passage is judged by: the query, the instruction before it, and the prompt's first line (`system`)."""

    query: str
    instruction: str = DEFAULT_INSTRUCTION
    system: str = DEFAULT_SYSTEM_INSTRUCTION


@dataclass(frozen=True, slots=True)
class PromptTokens(Tokens):
    """The token ids of a whole prompt; `truncated` says whether its query was cut."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """The model's tokenizer with the reference's two templates around it."""

    tokenizer: Tokenizer

    def passage(self, document: str, max_length: int) -> Tokens:
        """Tokens of `<Document>: {document}`, without `<bos>`, at most `max_length` of them (the prefix counts)."""
        return self.passages([document], max_length)[0]

    def passages(self, documents: Sequence[str], max_length: int) -> list[Tokens]:
        """`passage` for many documents at once, on the tokenizer's own threads."""
        return first_tokens(self.tokenizer, documents, _checked(max_length), prefix=PASSAGE_PREFIX)

    def passage_offsets(self, document: str, max_length: int) -> list[tuple[int, int]]:
        """Where the tokens of `passage` stand in the document behind its prefix: characters [start, end)."""
        return first_offsets(self.tokenizer, document, _checked(max_length), prefix=PASSAGE_PREFIX)

    def passage_end(self, document: str, max_length: int) -> Tokens:
        """As `passage`, but of too long a document the last tokens are kept, behind those of `<Document>:`.

        Of its characters, only so many at its end are tokenised that they hold these tokens in any text.
        """
        chars = countable_chars(max_length)
        ids = self._encode(PASSAGE_TEMPLATE.format(document=document[-chars:]))
        if len(ids) <= max_length:
            return Tokens(ids, len(document) > chars)
        head = self._encode(PASSAGE_TEMPLATE.format(document="").rstrip())
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, head, strict=False))
        kept = min(sum(1 for _ in same), max_length)
        return Tokens(ids[:kept] + ids[len(ids) - max_length + kept :], True)

    def prompt(self, prompt: Prompt, query_max_length: int) -> PromptTokens:
        """Tokens of the whole prompt. The query alone is cut to `query_max_length` tokens and decoded back first."""
        [cut] = first_tokens(self.tokenizer, [prompt.query], _checked(query_max_length))
        # as the reference does; tokenised again in the prompt, its first token may merge with the text before it
        query = self.tokenizer.decode(cut.ids, skip_special_tokens=False)
        text = PROMPT_TEMPLATE.format(system=prompt.system, instruction=prompt.instruction, query=query)
        return PromptTokens(self._encode(text), cut.truncated, prompt)

    def prefix(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids that every prompt of this instruction and system line begins with, up to where the query matters.

        Measured as what the prompts of very different queries have in common. A query may still change it (its first
        letters can merge with the token before them), so each prompt must be compared with it before it is used.
        """
        probes = [self.prompt(replace(prompt, query=query), len(query) + 1).ids for query in _PROBES]
        common = zip(*probes, strict=False)  # the i-th token of every probe, up to the shortest one's end
        return tuple(ids[0] for ids in itertools.takewhile(lambda ids: len(set(ids)) == 1, common))

    def answer_ids(self) -> tuple[int, int]:
        """The ids of `yes` and `no`: the last token of each word."""
        return self._encode("yes")[-1], self._encode("no")[-1]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def require_short(tokenizer: PromptTokenizer, instruction: str, limit: int, name: str = "instruction") -> None:
    """Raise `UsageError` when an instruction has more than `limit` tokens. `name`: what it is called."""
    [found] = first_tokens(tokenizer.tokenizer, [instruction], limit)
    if found.truncated:
        raise UsageError(
            f"{name}: {len(instruction)} characters, more than {limit} tokens (max_instruction_tokens); shorten it"
        )


def load_prompt_tokenizer(folder: Path, vocab_size: int | None = None) -> PromptTokenizer:
    """Load `tokenizer.json` of a checkpoint folder; without one, let transformers build it from what is there.

    Args:
        folder: the checkpoint's.
        vocab_size: how many rows its embedding table has; `None` = not known.

    Raises:
        CheckpointError: no tokenizer in the folder, or one that cannot be read, or that gives ids outside of the table.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        loaded = PromptTokenizer(tokenizer)
        answers, highest = loaded.answer_ids(), max(tokenizer.get_vocab().values())
        loaded.passage(UNKNOWN, 1)
    except Exception as exc:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {one_line(exc)}") from exc
    if vocab_size is not None and max(*answers, highest) >= vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json gives ids up to {highest}, the embedding table has {vocab_size} rows"
        )
    return loaded


def _checked(limit: int) -> int:
    if limit < 1:
        raise UsageError(f"a length limit of {limit} tokens was asked for; it must be 1 or more")
    return limit
