"""The one way through: every stage in order, with the settings of config.toml. Finished stages are skipped.

python -m training.run --data ../shared/data --minilm DIR --work WORK --out OUT
"""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

# Big tensors come from the heap, not from a fresh mapping each: page faults cost a fifth of the time otherwise.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def stage(module: str, settings: dict[str, object], **paths: Path | str) -> None:
    """Runs one script with a table of config.toml as its options."""
    options = {**{k.replace("_", "-"): v for k, v in paths.items()}, **settings}
    command = [sys.executable, "-m", f"training.{module}", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)


def main() -> None:
    """Leaves OUT/tiny and OUT/embedder, and the logs in WORK."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with beir/ and train/")
    parser.add_argument("--minilm", type=Path, required=True, help="all-MiniLM-L6-v2, safetensors")
    parser.add_argument("--work", type=Path, required=True, help="scratch, about 1 GB")
    parser.add_argument("--out", type=Path, required=True, help="gets tiny/ and embedder/")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "config.toml")
    args = parser.parse_args()
    config = tomllib.loads(args.config.read_text("utf-8"))
    work, tokenizer, embedder = args.work, args.out / "tiny", args.out / "embedder"
    work.mkdir(parents=True, exist_ok=True)
    if not (tokenizer / "tokenizer.json").exists():
        stage("tokenizer", {}, minilm=args.minilm, out=tokenizer)
    if not (embedder / "model.safetensors").exists():
        stage("static_embedder", config["static_embedder"], minilm=args.minilm, data=args.data, out=embedder)
    if not (work / "passages.npz").exists():
        stage("prepare", {}, data=args.data, tokenizer=tokenizer, out=work)
    if not (work / "encoder.pt").exists():
        stage("distil_encoder", config["distil_encoder"], minilm=args.minilm, work=work)
    common = {"data": args.data, "work": work, "embedder": embedder, "tokenizer": tokenizer}
    log = work / "train_reranker.jsonl"
    for name, init in (("decoder", "encoder"), ("joint", "decoder"), ("joint2", "joint")):
        if not (work / f"{name}.pt").exists():
            paths = {"init": work / f"{init}.pt", "out": work / f"{name}.pt", "log": log}
            stage("train_reranker", config[name], stage=name.rstrip("2"), **paths, **common)
    stage("export", {}, checkpoint=work / "joint2.pt", minilm=args.minilm, out=tokenizer)
    stage("evaluate", {}, data=args.data, embedder=embedder, checkpoint=work / "joint2.pt", tokenizer=tokenizer)


if __name__ == "__main__":
    main()
