"""What a `CrossEncoder`'s constructor takes → what `KaLMReranker` takes; the rest is refused, or ignored aloud.

What would change scores and cannot be served is refused; what changes speed or training alone is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

from kalm_cache.adapters.old_names import warn_once
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The constructor's arguments that are about a model to load, as `KaLMCrossEncoder` documents them."""

    device: Any = None
    max_length: int | None = None
    num_labels: int | None = None
    cache_folder: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    local_files_only: bool = False
    token: bool | str | None = None
    model_kwargs: Mapping[str, Any] | None = None
    processor_kwargs: Mapping[str, Any] | None = None
    config_kwargs: Mapping[str, Any] | None = None
    modules: Any = None
    model_card_data: Any = None
    keep_in_fp32_modules: Any = None
    cache: Any = None
    cache_gib: float | None = None
    cache_codec: str | None = None

    def of_reranker(self, chunk_size: int | None) -> dict[str, Any]:
        """The arguments of `KaLMReranker` beside the model's name.

        Args:
            chunk_size: pooling ratio; `None` = the reranker's default.

        Raises:
            UsageError: what cannot be served, such as several labels.
        """
        model, config, processor = (
            dict(given or {}) for given in (self.model_kwargs, self.config_kwargs, self.processor_kwargs)
        )
        self._refuse(config.pop("num_labels", None))
        limits = [self.max_length, processor.pop("model_max_length", None), processor.pop("max_length", None)]
        if "torch_dtype" in model:
            model.setdefault("dtype", model.pop("torch_dtype"))
        place = model.pop("device_map", None)
        chosen = {
            "device": place if isinstance(place, str) and place != "auto" else self.device,
            "dtype": model.pop("dtype", None),
            "max_length": next((limit for limit in limits if limit is not None), None),
            "chunk_size": chunk_size,
            "cache": self.cache,
            "cache_gib": self.cache_gib,
            "cache_codec": self.cache_codec,
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_folder,
            "local_files_only": self.local_files_only or None,
        }
        self._say_what_is_ignored(config, processor)
        return model | {name: value for name, value in chosen.items() if value is not None}  # KaLMReranker warns, too

    def for_backend(self) -> None:
        """Check that nothing is asked of a model which is there already. Raises `UsageError`, with the argument."""
        self._refuse(None)
        for field in fields(self):
            if field.name != "num_labels" and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"{field.name} is for a model's name; this backend is open: give it to its constructor"
                )

    def _refuse(self, labels: int | None) -> None:
        for given in (self.num_labels, labels):
            if given not in (None, 1):
                raise UsageError(f"num_labels is {given}; this model gives one score a pair")
        if self.modules is not None:
            raise UsageError(
                "modules cannot be served: a KaLM reranker is loaded by its name, folder or Hugging Face id"
            )

    def _say_what_is_ignored(self, config: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
        ignored = {
            "trust_remote_code": self.trust_remote_code,  # no code of a model's repository ever runs
            "model_card_data": self.model_card_data,
            "keep_in_fp32_modules": self.keep_in_fp32_modules,
            **{f"config_kwargs[{name!r}]": True for name in config},
            **{f"processor_kwargs[{name!r}]": True for name in processor},
        }
        given = [name for name, value in ignored.items() if value]
        if given:
            warn_once(f"ignored options, which this runtime has no use for: {', '.join(given)}")


class ModelCard:
    """What the original writes of a model that was trained. `metrics`: by evaluator, the last ones that it found."""

    def __init__(self) -> None:
        self.metrics: dict[Any, dict[str, Any]] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0) -> None:
        """Called by evaluators."""
        self.metrics[evaluator] = dict(metrics)


def what_scores(model: Any, backend: Any) -> Any:
    """The model's name, or what scores; either may stand under the name `backend`. Raises `UsageError`."""
    if not isinstance(backend, str):
        if model is not None:
            raise UsageError("give a model's name or a backend; got both")
        return backend
    if backend != "torch":
        raise UsageError(f"backend is {backend!r}; models run in torch")
    if model is None or model == "":
        raise UsageError("give a model's name, a folder, or a backend that scores")
    return str(model) if isinstance(model, PathLike) else model


def is_same_device(asked: Any, present: torch.device) -> bool:
    """Whether a call that asks for a device gets the model's own; `cuda` is any of them. Raises `UsageError`."""
    from kalm_cache.model.precision import named_device, resolve_device

    device = resolve_device(asked) if asked in (None, "auto") else named_device(asked)
    return device.type == present.type and (None in (device.index, present.index) or device.index == present.index)


def passage_limit(options: Mapping[str, Any]) -> int | None:
    """The `max_length` (tokens of a passage) that a call's `processing_kwargs` ask for.

    Args:
        options: what `predict` got beside its own arguments.

    Raises:
        UsageError: any other argument, or a part of `processing_kwargs` that would change scores.
    """
    unknown = sorted(options.keys() - {"processing_kwargs"})
    if unknown:
        raise UsageError(f"predict has no argument {unknown[0]!r}")
    limit = None
    for part, given in (options.get("processing_kwargs") or {}).items():
        settings = dict(given) if part in ("text", "common") and isinstance(given, Mapping) else {part: given}
        limit = settings.pop("max_length", limit)
        truncated, _ = settings.pop("truncation", True), settings.pop("padding", None)  # padding changes no score
        if settings or not truncated:
            name = next(iter(settings), "truncation=False")
            raise UsageError(f"processing_kwargs: {name} cannot be served; max_length can, of the passage's tokens")
    return limit
