"""A BERT's weights out of an ONNX file, as transformers reads them: gte-small comes in a package as ONNX alone.

    python -m training.from_onnx --model DIR --out DIR

DIR holds config.json, the tokenizer and onnx/model.onnx. Needs the package `onnx`, for this alone.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, BertModel


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Weights by transformers' names; a product's matrix, which ONNX keeps nameless and transposed, by its node's."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as exc:
        raise SystemExit("reading ONNX files needs onnx: pip install onnx") from exc
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name.removeprefix("bert."): array for name, array in stored.items() if "onnx::" not in name}
    for node in graph.node:
        matrices = [name for name in node.input if name in stored and stored[name].ndim == 2]
        if node.op_type == "MatMul" and matrices:
            name = node.name.strip("/").removeprefix("bert/").replace("/", ".").removesuffix(".MatMul")
            named[f"{name}.weight"] = stored[matrices[0]].T
    return named


def main() -> None:
    """Writes a folder that `AutoModel.from_pretrained` loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = BertModel(AutoConfig.from_pretrained(args.model), add_pooling_layer=False)
    found = tensors(args.model / "onnx" / "model.onnx")
    model.load_state_dict({name: torch.tensor(found[name]) for name in model.state_dict()})
    model.save_pretrained(args.out)
    for file in args.model.glob("*.json"):
        if file.name != "config.json":
            shutil.copy(file, args.out)


if __name__ == "__main__":
    main()
