"""`KaLMCrossEncoder`: sentence-transformers' `CrossEncoder`, over a model's name or any backend."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from kalm_cache.adapters.activation import Activation, activated, converted
from kalm_cache.adapters.cross_encoder_options import (
    ModelCard,
    ModelOptions,
    is_same_device,
    passage_limit,
    what_scores,
)
from kalm_cache.adapters.old_names import warn_once, with_old_names
from kalm_cache.adapters.pairs import score_pairs
from kalm_cache.adapters.scorer import Backend, RerankerSource, Scorer
from kalm_cache.arguments import PAIRS, as_list, check_count, check_limit, check_text
from kalm_cache.errors import UsageError
from kalm_cache.passage import OnMissing

if TYPE_CHECKING:
    import torch

    from kalm_cache.reranker import KaLMReranker

OLD_OPTIONS = {
    "model_name": "model_name_or_path",
    "automodel_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "tokenizer_kwargs": "processor_kwargs",
    "config_args": "config_kwargs",
    "cache_dir": "cache_folder",
    "default_activation_function": "activation_fn",
}
OLD_POSITIONS = ("num_labels", "max_length", "activation_fn", "device")
OLD_ARGUMENTS = {"sentences": "inputs", "activation_fct": "activation_fn"}


class KaLMCrossEncoder:
    """A KaLM reranker behind the constructor, `predict` and `rank` of a `CrossEncoder` with one label.

    A document is a text, `{"doc_id"}` (or `{"id"}`) for a stored passage, or `{"doc_id", "title", "text"}`: its text
    is encoded only where the index does not hold the id and `on_missing` is `encode`.

    Different from the original: a prompt is the instruction, and stands in front of no text; `max_length` counts the
    passage's tokens; it is no `torch.nn.Module`, and is not trained.
    """

    num_labels = 1

    @with_old_names(OLD_OPTIONS, ["classifier_dropout"], OLD_POSITIONS)
    def __init__(
        self,
        model_name_or_path: str | Backend | None = None,
        *,
        modules: Any = None,
        device: str | torch.device | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str | Backend = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        keep_in_fp32_modules: list[str] | None = None,
        reranker: KaLMReranker | None = None,
        on_missing: OnMissing = "encode",
        chunk_size: int | None = None,
        cache: Any = None,
        cache_gib: float | None = None,
        cache_codec: str | None = None,
    ) -> None:
        """Load a model by its name, or wrap a `Client`, `PassageIndex` or `KaLMReranker`.

        Args:
            model_name_or_path: alias (`tiny nano small large …`), folder or Hugging Face id; or what scores.
            modules: refused.
            device: `None` = CUDA when there is one, else the CPU.
            prompts: instructions by name, for `prompt_name`.
            default_prompt_name: the name of the instruction for calls without a prompt.
            cache_folder: where the model is downloaded to; texts are cached in `cache`.
            trust_remote_code: no effect: no code of a model's repository runs.
            revision: of the model on the hub.
            local_files_only: download nothing.
            token: for the hub.
            model_kwargs: `dtype` (or `torch_dtype`) and a `device_map` that is one device; others are ignored with a
                warning.
            processor_kwargs: `model_max_length`; others are ignored with a warning.
            config_kwargs: ignored with a warning.
            model_card_data: ignored with a warning.
            backend: `torch`; or what scores, by this name.
            num_labels: 1; others are refused.
            max_length: tokens of a passage that count; `None` = 1024.
            activation_fn: of a tensor of margins (N, 1), float32; `None` = `torch.nn.Sigmoid()`, which gives P(yes).
            keep_in_fp32_modules: ignored with a warning.
            reranker: beside a `PassageIndex`, what encodes texts.
            on_missing: `error`, or `encode` the text of what is not stored.
            chunk_size: pooling ratio; `None` = the backend's own.
            cache: a folder for pooled states, `True` for the platform's own, or an open `TextCache`: of a named model.
            cache_gib: of the cache's file at most; `None` = 4.
            cache_codec: how states are stored; `None` = `fp16`.

        Raises:
            UsageError: what cannot be served.
            CheckpointError: the model is missing or incomplete.
        """
        if on_missing == "skip":
            raise UsageError("on_missing='skip' leaves pairs without a score; choose error or encode")
        self.prompts, self.default_prompt_name = dict(prompts or {}), default_prompt_name
        if default_prompt_name is not None:
            self._prompt(default_prompt_name)
        options = ModelOptions(
            device, max_length, num_labels, cache_folder, trust_remote_code, revision, local_files_only, token,
            model_kwargs, processor_kwargs, config_kwargs, modules, model_card_data, keep_in_fp32_modules,
            cache, cache_gib, cache_codec,
        )  # fmt: skip
        scores = what_scores(model_name_or_path, backend)
        self._loaded: KaLMReranker | None = None
        if isinstance(scores, str):
            scores, chunk_size = self._load(scores, options.of_reranker(chunk_size)), None
        else:
            options.for_backend()
        self._scorer = Scorer(scores, reranker, on_missing, None, chunk_size)
        self._activation = activation_fn
        self.model_card_data = ModelCard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits for the cache of a model that was loaded by its name."""
        if self._loaded is not None:
            self._loaded.close()

    @property
    def activation_fn(self) -> Activation:
        """What makes scores of margins."""
        if self._activation is None:
            import torch

            self._activation = torch.nn.Sigmoid()
        return self._activation

    @activation_fn.setter
    def activation_fn(self, value: Activation) -> None:
        self._activation = value

    @property
    def default_activation_function(self) -> Activation:
        """The old name of `activation_fn`."""
        warnings.warn("default_activation_function was renamed: use activation_fn", DeprecationWarning, stacklevel=2)
        return self.activation_fn

    @property
    def device(self) -> torch.device:
        """Where the model of this process computes; the CPU where there is none."""
        import torch

        reranker = self._reranker()
        return torch.device("cpu") if reranker is None else reranker.device

    @property
    def max_seq_length(self) -> int:
        """Tokens of a passage that count. Raises `UsageError` where a service or an index knows that."""
        return self._own_reranker().passage_side.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        reranker = self._own_reranker()
        reranker.passage_side = replace(reranker.passage_side, max_length=check_count(value, "max_seq_length"))

    @property
    def max_length(self) -> int:
        """The old name of `max_seq_length`."""
        warnings.warn("max_length was renamed: use max_seq_length", DeprecationWarning, stacklevel=2)
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        warnings.warn("max_length was renamed: use max_seq_length", DeprecationWarning, stacklevel=2)
        self.max_seq_length = value

    @with_old_names(OLD_ARGUMENTS, ["num_workers"])
    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """P(yes) of each (query, document) pair, float32, in input order; of one pair, a scalar.

        Args:
            inputs: pairs, or one pair; lists, tuples, arrays or columns of them.
            prompt_name: the name of one of `prompts`.
            prompt: the instruction, what queries ask for.
            batch_size: pairs encoded and decoded together in this process; a service and an index choose their own.
            show_progress_bar: `None` = on a terminal, where it takes longer than 3 seconds; likewise.
            activation_fn: as the constructor's, for this call.
            apply_softmax: no effect, as with every model of one label.
            convert_to_numpy: an array, unless `convert_to_tensor`.
            convert_to_tensor: a tensor; where both are false, a list of tensors without dimensions.
            device: the model's own, or none; several of them are ignored with a warning.
            pool: ignored with a warning: one process computes, with all cores.
            chunk_size: ignored: of processes.
            kwargs: `processing_kwargs={"text": {"max_length": …}}`: tokens of a passage that count.

        Raises:
            UsageError: what is no pair of a query and a document, named by its position; other arguments.
        """
        items = as_list(inputs, "inputs", PAIRS)
        single, options = (
            self.is_singular_input(items),
            self._options(batch_size, show_progress_bar, device, pool, kwargs),
        )
        instruction = self._instruction(prompt, prompt_name)
        scored = score_pairs(self._scorer, [items] if single else items, instruction, options)
        place = None if self._reranker() is None else self.device
        scores = activated(scored, activation_fn or self._activation, place)
        results = converted(scores, convert_to_numpy, convert_to_tensor, place)
        return results[0] if single else results

    @with_old_names(OLD_ARGUMENTS, ["num_workers", "apply_softmax", "convert_to_numpy", "convert_to_tensor"])
    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Documents by falling score: `[{"corpus_id", "score", "text"?}]`, the `top_k` first ones.

        Equal scores are ordered by their margins. P(yes) is not rounded to float32. `text` is the document as it was
        given; further arguments are those of `predict`.

        Raises:
            UsageError: as `predict`; `documents` is no list, or `top_k` below 0.
        """
        documents, top_k = as_list(documents, "documents"), check_limit(top_k, "top_k", least=0)
        pairs = [(check_text(query, "query"), document) for document in documents]
        options = self._options(batch_size, show_progress_bar, device, pool, {})
        scored = score_pairs(self._scorer, pairs, self._instruction(prompt, prompt_name), options)
        values = activated(scored, activation_fn or self._activation, None)
        scores = values if isinstance(values, list) else values.tolist()
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], -scored[i].margin))[:top_k]
        ranking = [{"corpus_id": i, "score": scores[i]} for i in order]
        return [entry | {"text": documents[entry["corpus_id"]]} for entry in ranking] if return_documents else ranking

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether it is one pair: two items, of which the first one is a text."""
        return hasattr(inputs, "__len__") and len(inputs) > 0 and isinstance(inputs[0], str)

    def eval(self) -> Self:
        """Nothing: it is never trained."""
        return self

    def to(self, device: str | torch.device) -> Self:
        """Itself, where the model is on that device. Raises `UsageError` elsewhere: the constructor chooses one."""
        self._options(1, None, device, None, {})
        return self

    def start_multi_process_pool(self, target_devices: Any = None) -> dict[str, Any]:
        """A pool for `predict`, which has no use for it: one process computes, with all cores."""
        return {"input": None, "output": None, "processes": []}

    @staticmethod
    def stop_multi_process_pool(pool: dict[str, Any]) -> None:
        """End what `start_multi_process_pool` began: nothing."""

    def _instruction(self, prompt: str | None, name: str | None) -> str | None:
        if prompt is not None and name is not None:
            warn_once("prompt and prompt_name were both given: prompt_name is ignored")
        name = self.default_prompt_name if name is None else name
        return prompt if prompt is not None or name is None else self._prompt(name)

    def _prompt(self, name: str) -> str:
        if name in self.prompts:
            return self.prompts[name]
        if isinstance(name, int):  # where earlier versions had batch_size
            raise UsageError(f"prompt_name is {name}; give batch_size by its name: batch_size={name}")
        raise UsageError(f"prompt_name is {name!r}; the prompts are {', '.join(map(repr, self.prompts)) or 'none'}")

    def _load(self, name: str, options: dict[str, Any]) -> KaLMReranker:
        from kalm_cache.reranker import KaLMReranker

        self._loaded = KaLMReranker(name, **options)
        return self._loaded

    def _reranker(self) -> KaLMReranker | None:
        """The reranker of this process that all pairs go to, if there is one."""
        source = self._scorer.source()
        return source.reranker if isinstance(source, RerankerSource) else None

    def _own_reranker(self) -> KaLMReranker:
        reranker = self._reranker()
        if reranker is None:
            raise UsageError("the length that counts is the backend's: a service's or an index's settings hold it")
        return reranker

    def _options(
        self, batch_size: int, show: bool | None, device: Any, pool: Any, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Options of a call to the reranker, checked. Raises `UsageError`."""
        limit = passage_limit(kwargs)
        if limit is not None:
            self._own_reranker()
        if pool is not None or isinstance(device, list | tuple):
            warn_once("pool and a list of devices are ignored: one process computes, with all cores")
        elif device is not None and not is_same_device(device, self.device):
            raise UsageError(
                f"device is {str(device)!r}, but the model is on {self.device}: choose it in the constructor"
            )
        return {"batch_size": check_count(batch_size, "batch_size"), "max_length": limit, "show_progress_bar": show}
