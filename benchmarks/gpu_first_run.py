"""A GPU's first half hour: does the runtime compute the right thing there, how fast, and what bounds it.

    python -m benchmarks.checkpoints --shape nano --out DIR
    python -m benchmarks.gpu_first_run --model DIR [--device cuda] [--out benchmarks/results/gpu.jsonl]

One stage after the other, each a JSON line: what it found, or the error that it ended with, and its seconds. A stage
that fails ends no other. Lines are printed, and written to `--out` as they come. Ids are random; the work is real.
`--device cpu` and small sizes try the script itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rerank.pairs import Prompts, random_ids
from benchmarks.timing import DTYPES, emit, machine, significant
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.kernels import CHOICE
from kalm_cache.model.precision import synchronise
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import PassageSide, load_passage_side
from kalm_cache.scoring.query_side import QuerySide, load_query_side

CPU = torch.device("cpu")
PASSAGE_TOKENS, CHUNK_SIZE = 256, 4
REPEATS = 7
TESTS = ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/model/test_cuda.py")
Found = dict[str, Any]


@dataclass(frozen=True)
class FirstRun:
    """The stages. tokens: of a batch of passages; pairs: of a query; matrix: rows of the product of `ceilings`."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    tokens: tuple[int, ...]
    pairs: tuple[int, ...]
    matrix: int
    tests: bool = True
    stages: dict[str, Callable[[], Found]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stages = (self.versions, self.ceilings, self.cuda_tests, self.parity, self.encode, self.decode, self.launches)
        named = {stage.__name__: stage for stage in (*stages, self.out_of_memory, self.sanitizer)}
        object.__setattr__(self, "stages", named)

    def versions(self) -> Found:
        """The machine, and which kernels `auto` takes."""
        found = machine(self.device) | {
            "cuda": torch.version.cuda,
            "kernels": self.query_side().decoder.stack.kernels.name,
        }
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            found |= {"capability": f"{properties.major}.{properties.minor}", "bytes": properties.total_memory}
        return found

    def ceilings(self) -> Found:
        """Operations a second of a large product, bytes a second of a copy on the device and of one to it."""
        size = self.matrix
        left = torch.randn(size, size, device=self.device, dtype=self.dtype)
        here = torch.empty(size * size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        there = here.to(self.device)
        return {
            "product_tflops": significant(2 * size**3 / self.ms(lambda: left @ left) / 1e9),
            "device_gb_per_s": significant(2 * left.nbytes / self.ms(left.clone) / 1e6),
            "to_device_gb_per_s": significant(
                here.nbytes / self.ms(lambda: there.copy_(here, non_blocking=True)) / 1e6
            ),
        }

    def cuda_tests(self) -> Found:
        """The tests that need a GPU, in a process of their own."""
        if not self.tests:
            return {"skipped": "--no-tests"}
        environment = os.environ | {"TRITON_INTERPRET": "0", CHOICE: "auto"}
        run = subprocess.run([sys.executable, *TESTS], capture_output=True, text=True, env=environment)
        return {
            "exit_code": run.returncode,
            "last_line": run.stdout.strip().splitlines()[-1],
            "tail": run.stdout[-3000:],
        }

    def parity(self) -> Found:
        """Margins on the device, with either kernels, against the CPU's in float32: the largest differences."""
        states = [each.float().cpu() for each in self.passage_side(CPU, torch.float32).encode(self.passages(8))]
        prompts, exact = self.prompts(8), self.query_side(CPU, torch.float32)
        expected = torch.tensor(exact.margins(prompts, states, 8))
        found: Found = {"spread_of_margins": significant(float(expected.std()))}
        for kernels in ("auto", "torch"):
            for dtype in (torch.float32, self.dtype):
                side = self.query_side(self.device, dtype, kernels)
                margins = torch.tensor(side.margins(prompts, states, 8))
                name = f"{side.decoder.stack.kernels.name} {str(dtype).removeprefix('torch.')}"
                found[name] = significant(float((margins - expected).abs().max()))
        return found

    def encode(self) -> Found:
        """Tokens a second of passages of 256 tokens, pooling included, in batches of each size, with either kernels."""
        found = {}
        for kernels in ("auto", "torch"):
            side = self.passage_side(kernels=kernels)
            for tokens in self.tokens:
                batch = self.passages(max(1, tokens // PASSAGE_TOKENS))
                real = sum(len(passage.ids) for passage in batch)
                found[f"{side.encoder.stack.kernels.name} {tokens}"] = significant(
                    1e3 * real / self.ms(partial(side.encode, batch))
                )
        return {"tokens_per_s": found}

    def decode(self) -> Found:
        """Milliseconds of one query's pairs, from pooled states and from cached prefixes, with either kernels."""
        found = {}
        for kernels in ("auto", "torch"):
            side = self.query_side(kernels=kernels)
            for pairs in self.pairs:
                states, prompt = self.states(pairs), self.prompts(1)[0]
                cached = side.prefill(tuple(prompt.ids[: Prompts.prefix_tokens]), states, side.batch_pairs, self.dtype)
                for name, passages in (("cold", states), ("warm", cached)):
                    call = partial(side.margins, [prompt] * pairs, passages, side.batch_pairs)
                    found[f"{side.decoder.stack.kernels.name} {pairs} {name}"] = significant(self.ms(call))
        return {"ms": found}

    def launches(self) -> Found:
        """Kernels, copies and waits of one batch, as torch's profiler sees them."""
        side, states, prompt = self.query_side(), self.states(self.pairs[0]), self.prompts(1)[0]
        encoder, batch = self.passage_side(), self.passages(max(1, self.tokens[0] // PASSAGE_TOKENS))
        calls = {
            "decode": partial(side.margins, [prompt] * len(states), states, side.batch_pairs),
            "encode": partial(encoder.encode, batch),
        }
        return {name: self.profiled(call) for name, call in calls.items()}

    def out_of_memory(self) -> Found:
        """A batch that has no room is computed in halves: the same states, and a device that goes on."""
        if self.device.type != "cuda":
            return {"skipped": "no GPU"}
        side, batch = self.passage_side(), self.passages(self.tokens[-1] // PASSAGE_TOKENS)
        expected = side.encode(batch)
        torch.cuda.empty_cache()
        in_use = torch.cuda.memory_allocated(self.device) / torch.cuda.get_device_properties(self.device).total_memory
        try:
            torch.cuda.set_per_process_memory_fraction(min(1.0, in_use + 0.005), self.device)
            states = side.encode(batch)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
        largest = max(float((ours - theirs).abs().max()) for ours, theirs in zip(states, expected, strict=True))
        return {"fits": side.room.fits, "largest_difference": significant(largest)}

    def sanitizer(self) -> Found:
        """The CUDA tests under compute-sanitizer, which finds reads and writes out of bounds, where it is installed."""
        tool = shutil.which("compute-sanitizer")
        if tool is None or not self.tests:
            return {"skipped": "compute-sanitizer is not installed" if self.tests else "--no-tests"}
        command = [
            tool,
            "--tool",
            "memcheck",
            "--error-exitcode",
            "99",
            sys.executable,
            *TESTS,
            "-k",
            "states_and_margins",
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0", CHOICE: "auto"}
        )
        return {"exit_code": run.returncode, "tail": run.stdout[-1500:]}

    def ms(self, call: Callable[[], object]) -> float:
        """Median milliseconds of a call, after two that compile and fill caches."""
        taken = []
        for turn in range(REPEATS + 2):
            synchronise(self.device)
            start = time.perf_counter()
            call()
            synchronise(self.device)
            if turn >= 2:
                taken.append(1e3 * (time.perf_counter() - start))
        return statistics.median(taken)

    def profiled(self, call: Callable[[], object]) -> Found:
        """What one call of a warm function launches."""
        self.ms(call)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            call()
            synchronise(self.device)
        counts = {event.key: event.count for event in profile.key_averages()}
        asked = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaMemsetAsync")
        return {name: sum(count for key, count in counts.items() if key.startswith(name)) for name in asked}

    def passages(self, count: int) -> list[Tokens]:
        """Passages of random ids, of 256 tokens each."""
        vocabulary = self.checkpoint.config.encoder.vocab_size
        return [Tokens(random_ids(PASSAGE_TOKENS, vocabulary, seed=10_000 + i), truncated=False) for i in range(count)]

    def prompts(self, count: int) -> list[Tokens]:
        """Prompts with one prefix."""
        prompts = Prompts(self.checkpoint.config.decoder.vocab_size)
        return [prompts.prompt(i) for i in range(count)]

    def states(self, count: int) -> list[Tensor]:
        """Pooled states as a store gives them, on the CPU."""
        draw, width = torch.Generator().manual_seed(0), self.checkpoint.config.encoder.hidden_size
        shape = (PASSAGE_TOKENS // CHUNK_SIZE, width)
        return [torch.randn(shape, generator=draw).to(self.dtype) for _ in range(count)]

    def passage_side(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None, kernels: str = "auto"
    ) -> PassageSide:
        """The encoder, with the kernels that are asked for."""
        os.environ[CHOICE] = kernels
        return load_passage_side(
            self.checkpoint,
            device=device or self.device,
            dtype=dtype or self.dtype,
            max_length=1024,
            chunk_size=CHUNK_SIZE,
        )

    def query_side(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None, kernels: str = "auto"
    ) -> QuerySide:
        """The decoder, with the kernels that are asked for."""
        os.environ[CHOICE] = kernels
        return load_query_side(
            self.checkpoint, device=device or self.device, dtype=dtype or self.dtype, query_max_length=512
        )


def run_stages(stages: dict[str, Callable[[], Found]], write: Callable[[Found], None]) -> int:
    """One line a stage, whatever the others did. Returns how many failed."""
    failed = 0
    for name, stage in stages.items():
        started = time.perf_counter()
        try:
            line = {"stage": name, "ok": True, **stage()}
        except Exception as exc:  # a stage may end in any error: the next one tells as much
            failed += 1
            line = {"stage": name, "ok": False, "error": repr(exc), "traceback": traceback.format_exc()[-3000:]}
        write(line | {"seconds": significant(time.perf_counter() - started)})
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """All stages; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder with a checkpoint")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--tokens", default="8192,32768,131072", help="of a batch of passages")
    parser.add_argument("--pairs", default="32,100,400", help="of a query")
    parser.add_argument("--matrix", type=int, default=8192, help="rows of the product that shows the ceiling")
    parser.add_argument("--no-tests", action="store_true", help="neither the CUDA tests nor compute-sanitizer")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    args = parser.parse_args(argv)
    sizes = [tuple(map(int, listed.split(","))) for listed in (args.tokens, args.pairs)]
    checkpoint, dtype = open_checkpoint(args.model), DTYPES[args.dtype]
    run = FirstRun(checkpoint, args.device, dtype, sizes[0], sizes[1], args.matrix, not args.no_tests)
    with args.out.open("w", encoding="utf-8") as file:

        def write(line: Found) -> None:
            emit(line)
            file.write(f"{json.dumps(line)}\n")
            file.flush()

        return min(1, run_stages(run.stages, write))


if __name__ == "__main__":
    sys.exit(main())
