"""The one way through: every stage in order, with the settings of config.toml. Finished stages are skipped.

python -m training.run --data ../shared/data --minilm DIR --teacher DIR --text DIR --work WORK --out OUT
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
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",  # compiled bfloat16 products, one for each shape
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}


def stage(module: str, done: Path, settings: dict[str, object], **paths: Path | str) -> None:
    """Runs one script with a table of config.toml as its options, unless what it makes is there."""
    if done.exists():
        return
    options = {**{k.replace("_", "-"): v for k, v in paths.items()}, **settings}
    command = [sys.executable, "-m", f"training.{module}", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)


def main() -> None:
    """Leaves OUT/tiny and OUT/embedder, and the logs in WORK."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with beir/ and train/")
    parser.add_argument("--minilm", type=Path, required=True, help="all-MiniLM-L6-v2, safetensors")
    parser.add_argument("--teacher", type=Path, required=True, help="gte-small (thenlper/gte-small), safetensors")
    parser.add_argument("--text", type=Path, required=True, help="what collect_text.py brought, or a folder for it")
    parser.add_argument("--work", type=Path, required=True, help="scratch, about 2 GB")
    parser.add_argument("--out", type=Path, required=True, help="gets tiny/ and embedder/")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "config.toml")
    args = parser.parse_args()
    config = tomllib.loads(args.config.read_text("utf-8"))
    work, tokenizer, embedder = args.work, args.out / "tiny", args.out / "embedder"
    clean = work / "text"
    work.mkdir(parents=True, exist_ok=True)
    stage("tokenizer", tokenizer / "tokenizer.json", {}, minilm=args.minilm, out=tokenizer)
    stage(
        "static_embedder",
        embedder / "model.safetensors",
        config["static_embedder"],
        minilm=args.minilm,
        data=args.data,
        out=embedder,
    )
    stage("collect_text", args.text / "pairs.jsonl", {}, out=args.text)
    stage("overlap", clean / "overlap.json", {}, data=args.data, text=args.text, out=clean)
    stage(
        "prepare",
        work / "passages.npz",
        config["prepare"],
        data=args.data,
        text=clean,
        tokenizer=tokenizer,
        out=work,
    )
    stage("invent", work / "invented.npz", {}, tokenizer=tokenizer, work=work)
    stage("vectors", work / "near_queries.npy", {}, teacher=args.teacher, work=work)
    stage("distil_encoder", work / "encoder.pt", config["distil_encoder"], minilm=args.minilm, work=work)
    common = {"work": work, "tokenizer": tokenizer, "log": work / "train_reranker.jsonl"}
    for name, init in (("decoder", "encoder"), ("joint", "decoder"), ("second", "joint")):
        paths = {"init": work / f"{init}.pt", "out": work / f"{name}.pt"}
        kind = "decoder" if name == "decoder" else "joint"
        stage("train_reranker", work / f"{name}.pt", config[name], stage=kind, **paths, **common)
    stage(
        "export",
        tokenizer / "model.safetensors",
        {},
        checkpoint=work / "second.pt",
        minilm=args.minilm,
        out=tokenizer,
    )


if __name__ == "__main__":
    main()
