"""The model's files: there, whole, and those that the index was built with."""

from __future__ import annotations

from pathlib import Path

from kalm_cache.doctor.check import Check, verdict
from kalm_cache.errors import CheckpointError, KalmCacheError
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import Manifest
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.precision import dtype_name
from kalm_cache.model.prompts import load_prompt_tokenizer
from kalm_cache.settings import Settings


def check_model(settings: Settings, index: Path | None) -> Check:
    """The model that `serve` would load: the one that was asked for, or else the index's own."""
    manifest = _manifest(index)
    said = "model" in settings.model_fields_set or manifest is None
    name = settings.model if said or manifest is None else manifest.model
    try:
        checkpoint = open_checkpoint(name, local_files_only=True)
        dtypes = sorted(_stored_dtypes(checkpoint))
        load_prompt_tokenizer(checkpoint.folder).answer_ids()
    except CheckpointError as exc:
        return Check("model", "fail", str(exc), _way_out(name))
    found = f"{name} in {checkpoint.folder}, {len(checkpoint.files):,} tensors in {', '.join(dtypes)}"
    if manifest is None:
        return Check("model", "ok", found)
    digest, built_with = checkpoint.digest(), manifest.fingerprint.model
    if digest == built_with:
        return Check("model", "ok", f"{found}; digest {digest[:12]}…, as the index's")
    fail = [
        f"the index was built with model {manifest.model!r}, digest {built_with[:12]}…: leave KALM_CACHE_MODEL out, or "
        f"run kalm-cache reindex CORPUS --index {index} --model {name}"
    ]
    return verdict("model", f"{found}; digest {digest[:12]}…", fail=fail)


def _stored_dtypes(checkpoint: Checkpoint) -> set[str]:
    """The dtypes of one tensor of each file: every file's header is read, which fails where it was cut."""
    one_of_each = {file: name for name, file in checkpoint.files.items()}
    return {dtype_name(checkpoint.tensor(name).dtype) for name in one_of_each.values()}


def _way_out(name: str) -> str:
    if Path(name).is_dir():
        return "copy the whole folder again: config.json, safetensors, tokenizer"
    return f"a model on Hugging Face is downloaded at first use; for a machine without network: hf download {name}"


def _manifest(index: Path | None) -> Manifest | None:
    """`None` also where the index cannot be opened: that is another check's to say."""
    try:
        return None if index is None else open_current(index).manifest
    except KalmCacheError:
        return None
