"""Where a model's files are, and its tensors one by one. Knows nothing of how they are computed with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kalm_cache.errors import CheckpointError
from kalm_cache.foreign_files import read_json, relative_path
from kalm_cache.model.config import ModelConfig, parse_model_config
from kalm_cache.process.system import explained

SENSITIVITY_FILE = "sensitivity.safetensors"  # what the codecs below 8 bits round by, see `codec.sensitivity`
BUNDLED_TINY = Path(__file__).parent.parent / "bundled" / "tiny"
ALIASES = {
    "nano": "KaLM-Embedding/KaLM-Reranker-V1-Nano",
    "small": "KaLM-Embedding/KaLM-Reranker-V1-Small",
    "large": "KaLM-Embedding/KaLM-Reranker-V1-Large",
    "nano-r2": "KaLM-Embedding/KaLM-Reranker-V1-Nano-R2",
    "small-r2": "KaLM-Embedding/KaLM-Reranker-V1-Small-R2",
    "large-r2": "KaLM-Embedding/KaLM-Reranker-V1-Large-R2",
}
# transformers has saved the text encoder under both names
ENCODER_PREFIXES = ("model.encoder.text_model.", "model.encoder.")
DECODER_PREFIX = "model.decoder."
FILES_NEEDED = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*", "special_tokens_map.json"]
_HASH_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder: its parsed configuration, and which file holds which tensor."""

    name: str
    folder: Path
    config: ModelConfig
    files: dict[str, str]

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped from disk: pages are read when touched, and not at all when they are not.

        Raises:
            CheckpointError: its file is gone or damaged, does not hold it, or holds whole numbers.
        """
        path = self.folder / self.files[name]
        with _weights(path) as file:
            tensor: Tensor = file.get_tensor(name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, expected floating-point numbers")
        return tensor

    def find(self, *names: str) -> str | None:
        """The first of `names` that the checkpoint holds."""
        return next((name for name in names if name in self.files), None)

    def encoder_prefix(self) -> str:
        """What the names of the text encoder's tensors begin with. Raises `CheckpointError` where there is none."""
        prefix = next((prefix for prefix in ENCODER_PREFIXES if f"{prefix}norm.weight" in self.files), None)
        if prefix is None:
            raise CheckpointError(f"{self.folder}: no text encoder among the tensors ({ENCODER_PREFIXES[0]}…)")
        return prefix

    def layers_below(self, prefix: str) -> set[str]:
        """The tensors of a stack's layers and last norm, by their names behind its prefix."""
        named = {name.removeprefix(prefix) for name in self.files if name.startswith(prefix)}
        return {name for name in named if name.startswith(("layers.", "norm."))}

    def encoder_embedding(self, part: str) -> str:
        """The name of the encoder's `embed_tokens.{part}`. One that is not there is tied to the decoder's."""
        return self._embedding(part, (*ENCODER_PREFIXES, DECODER_PREFIX))

    def decoder_embedding(self, part: str) -> str:
        """The name of the decoder's `embed_tokens.{part}`. One that is not there is tied to the encoder's."""
        return self._embedding(part, (DECODER_PREFIX, *ENCODER_PREFIXES))

    def head(self) -> str:
        """The name of the output matrix. One that is not there is tied to the encoder's table."""
        # transformers 5 reads files this way too
        return self.find("lm_head.out_proj.weight", "lm_head.weight") or self.encoder_embedding("weight")

    def _embedding(self, part: str, prefixes: tuple[str, ...]) -> str:
        name = self.find(*(f"{prefix}embed_tokens.{part}" for prefix in prefixes))
        if name is None:
            raise CheckpointError(f"{self.folder}: no token embeddings (…embed_tokens.{part})")
        return name

    def digest(self) -> str:
        """SHA-256 over all files: weights, configuration, tokenizer, sensitivity if any.

        Indexes of earlier versions know their model by it; `kalm_cache.model.digests` tells its two sides apart.
        """
        sha = hashlib.sha256()
        beside = [
            path.name
            for pattern in ("tokenizer.*", SENSITIVITY_FILE)
            for path in self.folder.glob(pattern)
            if path.is_file()
        ]
        for name in sorted({*self.files.values(), *beside, "config.json"}):
            sha.update(f"{name}\0".encode())
            with (self.folder / name).open("rb") as file:
                while block := file.read(_HASH_BLOCK):
                    sha.update(block)
        return sha.hexdigest()


def open_checkpoint(name: str, **hub_options: Any) -> Checkpoint:
    """Find a model by alias (`tiny nano small large nano-r2 small-r2 large-r2`), folder, or Hugging Face id.

    Args:
        name: alias, path of a local folder, or `owner/name` on the hub (downloaded once, then cached).
        hub_options: passed to `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`,
            `local_files_only`, …

    Raises:
        CheckpointError: not found, incomplete, or of another architecture.
    """
    folder = _local_folder(name) or _download(ALIASES.get(name, name), **hub_options)
    raw = _read_json(folder / "config.json")
    try:
        config = parse_model_config(raw)
    except CheckpointError as exc:
        raise CheckpointError(f"{folder}: {exc}") from exc
    return Checkpoint(name, folder, config, _tensor_files(folder))


def _local_folder(name: str) -> Path | None:
    if name == "tiny":
        return BUNDLED_TINY
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def _download(repo_id: str, **hub_options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=FILES_NEEDED, **hub_options))
    except HFValidationError as exc:
        raise CheckpointError(
            f"{repo_id!r} is neither a folder, nor an alias (tiny, {', '.join(ALIASES)}), nor a Hugging Face id"
        ) from exc
    except Exception as exc:  # the hub's client raises many kinds: its own, OSError, httpx's
        reason = " ".join(str(exc).split())  # the hub's messages span lines
        raise CheckpointError(
            f"{repo_id}: not a local folder, and the download from Hugging Face failed: {reason}"
        ) from exc


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path.parent}: no {path.name}; a checkpoint folder holds one") from exc
    except ValueError as exc:
        raise CheckpointError(f"{path}: not valid JSON: {exc}") from exc
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc.strerror}") from exc


def _tensor_files(folder: Path) -> dict[str, str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if not single.is_file():
        raise CheckpointError(f"{folder}: no model.safetensors and no {index.name}; other formats are not read")
    with _weights(single) as file:
        return dict.fromkeys(file.keys(), single.name)


def _indexed_files(index: Path) -> dict[str, str]:
    raw = _read_json(index)
    files = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{index}: no weight_map in it, of tensors to files")
    try:
        for name in set(files.values()):
            relative_path(name)
    except ValueError as exc:
        raise CheckpointError(f"{index}: weight_map: {exc}") from exc
    missing = sorted({name for name in files.values() if not (index.parent / name).is_file()})
    if missing:
        raise CheckpointError(f"{index.parent}: {index.name} names files that are not there: {', '.join(missing)}")
    return files


@contextmanager
def _weights(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file: {explained(exc, path)}") from exc
