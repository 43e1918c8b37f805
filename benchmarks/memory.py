"""Resident memory of one model: whole in transformers, as our passage side, as our query side, and the decoder
and the tokenizer of that side alone.

Each form loads in a fresh process and computes once, so that every page it needs has been touched. Resident pages are
told apart by what backs them: the checkpoint's file (shared with every other process, and given back under pressure),
program libraries, or anonymous memory (the process's own).

    python -m benchmarks.memory --model DIR [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

FORMS = ("transformers", "passage side", "query side", "decoder alone", "tokenizer alone")
QUERY = "What is the capital of China?"
DOCUMENT = "The capital of China is Beijing. " * 30
POOLED_STATES = 64
MIB = 1 << 20


def measure(form: str, folder: Path, dtype: str) -> dict[str, Any]:
    """Load and use one form in this process; sizes in bytes, before and after."""
    uses = (_use_transformers, _use_passage_side, _use_query_side, _use_decoder, _use_tokenizer)
    use = dict(zip(FORMS, uses, strict=True))[form]
    before = resident(folder)
    weights, table_bytes = use(folder, dtype)
    after = resident(folder)
    weight_bytes = sum(weight.nbytes for weight in weights)
    return {
        "form": form,
        "dtype": dtype,
        "weight_bytes": weight_bytes,
        "mapped_table_bytes": table_bytes,
        "rss_before_load_bytes": sum(before.values()),
        "rss_bytes": sum(after.values()),
        **{f"{kind}_bytes": size for kind, size in after.items()},
        "loaded_bytes": after["anonymous"] - before["anonymous"] + after["checkpoint"],
    }


def resident(folder: Path) -> dict[str, int]:
    """Resident bytes of this process: `anonymous`, `checkpoint` (mapped from the folder's files) and `libraries`."""
    files = {str(path.resolve()) for path in folder.iterdir()}
    sizes = {"anonymous": 0, "checkpoint": 0, "libraries": 0}
    for region in psutil.Process().memory_maps(grouped=True):
        kind = "checkpoint" if region.path in files else "anonymous" if region.path.startswith("[") else "libraries"
        sizes[kind] += region.rss
    return sizes


def _use_transformers(folder: Path, dtype: str) -> tuple[list[Tensor], int]:
    from benchmarks.reference import load_slow_reference, mean_of_groups

    reference = load_slow_reference(folder, _computed_in(dtype))
    states = reference.states(reference.passage_ids(DOCUMENT))
    reference.margin(reference.prompt_ids(QUERY), mean_of_groups(states, 4))
    return list(reference.model.parameters()), 0


def _use_passage_side(folder: Path, dtype: str) -> tuple[list[Tensor], int]:
    from kalm_cache.model.checkpoint import open_checkpoint
    from kalm_cache.scoring.passage_side import load_passage_side

    side = load_passage_side(
        open_checkpoint(str(folder)),
        device=torch.device("cpu"),
        dtype=getattr(torch, dtype),
        max_length=1024,
        chunk_size=4,
    )
    side.encode(side.tokenize([DOCUMENT]))
    return list(side.encoder.stack.tensors()), side.encoder.stack.embed.table.nbytes


def _use_query_side(folder: Path, dtype: str) -> tuple[list[Tensor], int]:
    from kalm_cache.model.checkpoint import open_checkpoint
    from kalm_cache.model.prompts import Prompt
    from kalm_cache.scoring.query_side import load_query_side

    side = load_query_side(
        open_checkpoint(str(folder)),
        device=torch.device("cpu"),
        dtype=getattr(torch, dtype),
        query_max_length=512,
    )
    prompt = side.tokenize(Prompt(QUERY))
    side.margins([prompt], [torch.zeros(POOLED_STATES, side.decoder.stack.config.hidden_size)], 1)
    return list(side.decoder.stack.tensors()), side.decoder.stack.embed.table.nbytes


def _use_decoder(folder: Path, dtype: str) -> tuple[list[Tensor], int]:
    from kalm_cache.model.checkpoint import open_checkpoint
    from kalm_cache.model.layers.decoder_pass import Prompts
    from kalm_cache.model.runtime import load_decoder

    decoder = load_decoder(open_checkpoint(str(folder)), (2, 3), torch.device("cpu"), getattr(torch, dtype))
    states = torch.zeros(POOLED_STATES, decoder.stack.config.hidden_size, dtype=decoder.stack.dtype)
    decoder.margins(Prompts([list(range(2, 67))], [0]), states, [POOLED_STATES])
    return list(decoder.stack.tensors()), decoder.stack.embed.table.nbytes


def _use_tokenizer(folder: Path, dtype: str) -> tuple[list[Tensor], int]:
    from kalm_cache.model.prompts import load_prompt_tokenizer

    load_prompt_tokenizer(folder).passage(DOCUMENT, 1024)
    return [], 0


def _computed_in(dtype: str) -> torch.dtype:
    """transformers has no int8 runs: it is measured in float32 beside ours."""
    return torch.float32 if dtype == "int8" else getattr(torch, dtype)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The measurements as one table, with ratios to the first row."""
    lines = [
        "| form | weights in its dtype | resident | own (anonymous) | mapped checkpoint | libraries "
        "| resident, ratio | loaded, ratio | growth while loading, to its weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = (row[f"{kind}_bytes"] for kind in ("weight", "rss", "anonymous", "checkpoint", "libraries"))
        ratios = (row[kind] / rows[0][kind] for kind in ("rss_bytes", "loaded_bytes"))
        growth = (row["rss_bytes"] - row["rss_before_load_bytes"]) / row["weight_bytes"] if row["weight_bytes"] else 0
        cells = [*(f"{size / MIB:,.0f} MiB" for size in sizes), *(f"{ratio:.2f}" for ratio in (*ratios, growth))]
        lines.append(f"| {row['form']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every form in its own process; print one JSON line for each, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "int8"), default="float32")
    parser.add_argument("--form", choices=FORMS, help="measure this form in this very process")
    args = parser.parse_args()
    if args.form:
        print(json.dumps(measure(args.form, args.model, args.dtype)))
        return
    command = [sys.executable, "-m", "benchmarks.memory", "--model", str(args.model), "--dtype", args.dtype]
    rows = []
    for form in FORMS:
        run = subprocess.run(
            [*command, "--form", form], env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, check=True
        )
        rows.append(json.loads(run.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]))
    print(markdown(rows))


if __name__ == "__main__":
    main()
