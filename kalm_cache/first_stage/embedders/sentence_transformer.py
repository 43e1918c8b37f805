"""The sentence-transformers embedder: any model of that library, from a folder or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import CheckpointError, MissingExtraError
from kalm_cache.first_stage.embedders.digest import model_digest
from kalm_cache.first_stage.embedders.vectors import l2_normalise
from kalm_cache.first_stage.normalisation import normalised
from kalm_cache.foreign_files import read_json, relative_path
from kalm_cache.process.system import one_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MODEL_SUFFIXES = (".json", ".txt", ".model", ".safetensors")  # weights, tokenizer and configuration; no pickles
OTHER_BACKENDS = ("onnx", "openvino")  # the same model again, for runtimes that are not used here


class SentenceTransformerEmbedder:
    """An `Embedder` over a sentence-transformers model; an empty prompt means the model's own, if it has one."""

    def __init__(self, model: SentenceTransformer, digest: str, *, query_prompt: str, passage_prompt: str) -> None:
        self._model = model
        self._lock = Lock()  # encode() reconfigures its tokenizer, which older tokenizers refuse while another encodes
        self._query_prompt = query_prompt or None
        self._passage_prompt = passage_prompt or None
        self.dimension = int(np.asarray(model.encode(["a"], show_progress_bar=False)).shape[1])
        self.digest = digest

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts (n,) -> vectors (n, E) float32 of length 1 or 0."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        with self._lock:
            vectors = self._model.encode_query(_normalised(texts), prompt=self._query_prompt, show_progress_bar=False)
        return l2_normalise(vectors)

    def embed_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts (n,) -> vectors (n, E) float32 of length 1 or 0."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        with self._lock:
            vectors = self._model.encode_document(
                _normalised(texts), prompt=self._passage_prompt, show_progress_bar=False
            )
        return l2_normalise(vectors)


def _normalised(texts: Sequence[str]) -> list[str]:
    return [normalised(text) for text in texts]


def load_sentence_transformer(
    name: str, *, query_prompt: str, passage_prompt: str, device: str | None
) -> SentenceTransformerEmbedder:
    """Load a sentence-transformers model by folder or by Hugging Face id; `device` `None` = the library chooses.

    Raises:
        CheckpointError: no such model, or one without safetensors weights.
        MissingExtraError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as exc:
        raise MissingExtraError("sentence-transformers", "sentence-transformers") from exc
    folder = Path(name) if Path(name).is_dir() else _download(name)
    files = _model_files(folder)
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(
            f"embedder {name!r}: no .safetensors weights in {folder}; convert the model to safetensors"
        )
    try:
        _check_modules(folder)
        model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as exc:
        raise CheckpointError(f"embedder {name!r} is not a sentence-transformers model: {one_line(exc)}") from exc
    digest = model_digest(folder, files, query_prompt=query_prompt, passage_prompt=passage_prompt)
    return SentenceTransformerEmbedder(model, digest, query_prompt=query_prompt, passage_prompt=passage_prompt)


def _check_modules(folder: Path) -> None:
    """Raise `ValueError` where the model names classes that are not the library's: it would import and call them."""
    if not (folder / "modules.json").is_file():
        return
    for module in read_json(folder / "modules.json"):
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise ValueError(f"modules.json names {str(kind)[:60]!r}, which is not of sentence-transformers")
        if module.get("path"):
            relative_path(str(module["path"]))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=[f"{b}/*" for b in OTHER_BACKENDS]))
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"embedder {name!r} is neither 'static', a folder, nor a Hugging Face model that can be fetched: {exc}"
        ) from exc


def _model_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in MODEL_SUFFIXES)
    return [path for path in files if not _is_foreign(path.relative_to(folder))]


def _is_foreign(path: Path) -> bool:
    return path.parts[0] in OTHER_BACKENDS or any(part.startswith(".") for part in path.parts)
