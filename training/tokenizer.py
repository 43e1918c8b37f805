"""MiniLM's WordPiece as the checkpoint's tokenizer: same ids for words, KaLM's markers on unused ids.

The fixed phrases of the prompt are single added tokens, so a prompt is 7 + query tokens rather than about 70.
Knows nothing of models or data.

    python -m training.tokenizer --minilm DIR --out DIR
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a query, retrieve documents that answer the query."

# On MiniLM's [unused0]... (ids 1, 2, ...), in this order. The longest match wins.
SPECIALS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
PHRASES = (
    "<start_of_turn>user",
    "<end_of_turn>\n<start_of_turn>model",
    SYSTEM,
    INSTRUCTION,
    "<Instruct>:",
    "<Query>:",
    "<Document>:",
)


def prompt_text(query: str, instruction: str = INSTRUCTION, system: str = SYSTEM) -> str:
    """The decoder's prompt, as KaLM-Reranker writes it."""
    return (
        f"<bos><start_of_turn>user\n{system}\n\n<Instruct>: {instruction}\n<Query>: {query}"
        "<end_of_turn>\n<start_of_turn>model\n\n\n\n"
    )


def passage_text(title: str, text: str) -> str:
    """The encoder's input: title and text joined by one space."""
    return f"<Document>: {title} {text}".rstrip() if title else f"<Document>: {text}"


def build(minilm: Path) -> Tokenizer:
    """The fast tokenizer over MiniLM's 30,522 ids.

    Markers are added tokens that are no vocabulary words, so `[unusedN]` rows are what they reuse.
    """
    vocab: dict[str, int] = json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    renamed = {"[PAD]": "<pad>", "[UNK]": "<unk>"}
    renamed |= {f"[unused{i}]": name for i, name in enumerate(SPECIALS + PHRASES)}
    vocab = {renamed.get(token, token): i for token, i in vocab.items()}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    specials = ("<pad>", "<unk>", *SPECIALS)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in specials])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in PHRASES])
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> PreTrainedTokenizerFast:
    """Writes tokenizer.json and tokenizer_config.json for `AutoTokenizer`."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=1024,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)
    return fast


def main() -> None:
    """Builds, saves and checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    fast = save(build(args.minilm), args.out)
    for query in ("What is the capital of China?", "don't re-index 3.5% of it's naïve Café's"):
        ids = fast(query, add_special_tokens=False)["input_ids"]
        decoded = fast.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if fast(decoded, add_special_tokens=False)["input_ids"] != ids:
            raise SystemExit(f"unstable: {query!r} -> {decoded!r}")
        prompt = fast(prompt_text(decoded), add_special_tokens=False)["input_ids"]
        print(len(prompt), len(ids), fast.convert_ids_to_tokens(prompt))
        if len(prompt) != len(ids) + 7:
            raise SystemExit("the fixed phrases are not single tokens")


if __name__ == "__main__":
    main()
