"""A cross-encoder in ONNX Runtime, float32 or int8: what FlashRank's users run, and TEI's on a CPU.

It is exported from the same random weights that torch runs. int8 is ONNX Runtime's dynamic quantisation: weights are
int8, activations become 8 bits at every product.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rerank.cross_encoders import CrossEncoder, Shape
from kalm_cache.errors import UsageError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 17


class OnnxCrossEncoder(CrossEncoder):
    """A BERT-shaped cross-encoder, asked as `CrossEncoder` is, with as many threads as torch has.

    Raises:
        UsageError: onnx or onnxruntime is not installed, or the dtype is neither float32 nor int8.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        if dtype not in (torch.float32, torch.int8):
            raise UsageError(f"ONNX Runtime is measured in float32 and int8 on a CPU, not in {dtype}")
        super().__init__(shape, torch.float32, device)
        with tempfile.TemporaryDirectory() as folder:
            self.session = _session(self.model, Path(folder), quantized=dtype == torch.int8)

    def scores(self, pairs: Tensor, batch_size: int) -> list[float]:
        """One score a pair."""
        scores: list[float] = []
        for batch in pairs.split(batch_size):
            feed = zip(INPUTS, (batch, torch.ones_like(batch), torch.zeros_like(batch)), strict=True)
            [logits] = self.session.run(None, {name: values.numpy() for name, values in feed})
            scores += logits[:, 0].tolist()
        return scores


def _session(model: Any, folder: Path, quantized: bool) -> Any:
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as exc:
        raise UsageError(f"{exc.name} is not installed: pip install 'kalm-cache[bench]'") from exc
    path = folder / "model.onnx"
    _export(model, path)
    if quantized:
        quantize_dynamic(path, folder / "int8.onnx", weight_type=QuantType.QInt8)
        path = folder / "int8.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _export(model: Any, path: Path) -> None:
    model.set_attn_implementation("eager")  # plain products and a softmax, which ONNX Runtime fuses
    ids = torch.full((2, 16), 1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter itself, and of shapes that it takes for constants: they are
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids), torch.zeros_like(ids)),
            str(path),
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={name: {0: "pairs", 1: "tokens"} for name in INPUTS},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs onnxscript
        )
