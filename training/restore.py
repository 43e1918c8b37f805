"""A published checkpoint as a training state: what `export.py` wrote, read back.

python -m training.restore --checkpoint kalm_cache/bundled/tiny --out WORK/first.pt
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from training.model import MARKERS, Reranker

SIDES = {"encoder.": "model.encoder.", "decoder.": "model.decoder."}


def restore(folder: Path) -> Reranker:
    """The training model with a checkpoint's weights (bfloat16 values, kept in float32)."""
    stored = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    table = next(tensor for name, tensor in stored.items() if name.endswith("embed_tokens.weight"))
    model = Reranker()
    state = model.state_dict()
    for name in state:
        for side, prefix in SIDES.items():
            if name.startswith(side):
                state[name] = stored[prefix + name.removeprefix(side)]
    state["table"] = table
    state["marker_rows"] = torch.cat((torch.zeros(1, table.shape[1]), table[torch.tensor(MARKERS)]))
    model.load_state_dict(state)
    return model


def main() -> None:
    """Writes the training state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.save(restore(args.checkpoint).state_dict(), args.out)


if __name__ == "__main__":
    main()
