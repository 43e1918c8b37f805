"""The whole job on a small real index: what it writes, what it leaves alone, and what a kill costs it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reference import load_slow_reference
from kalm_cache.errors import UsageError
from kalm_cache.finetuning.job import RUN, Data, FinetuneReport, Shown, Source, finetune, mine_negatives
from kalm_cache.finetuning.options import HeldOutOptions, MiningOptions, TrainingOptions
from kalm_cache.finetuning.training.trained_decoder import LoraOptions, load_trained_decoder
from kalm_cache.model.checkpoint import Checkpoint, open_checkpoint
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.query_side import load_query_side
from tests.finetuning.conftest import PASSAGES, QUERIES, Told

TRAINING = TrainingOptions(
    epochs=2, queries=4, passages=4, chunk_sizes=(2, 8), lora=LoraOptions(4, 8, 0.1), learning_rate=1e-3, watches=2
)
MINING, HELD_OUT = MiningOptions(negatives=3, last_rank=20, random=1), HeldOutOptions(0.2, 0.2, candidates=8)


def run(
    source: Source, train: Path, out: Path, told: Told, training: TrainingOptions = TRAINING, shown: Shown | None = None
) -> FinetuneReport:
    return finetune(source, Data(train), out, MINING, training, HELD_OUT, shown or told.shown())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses(out: Path) -> list[tuple[int, float, int]]:
    lines = [json.loads(line) for line in (out / RUN / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["chunk_size"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("lora", [LoraOptions(4, 8), None], ids=["lora", "whole"])
def test_a_run_writes_a_checkpoint_that_has_the_encoder_and_loads_here_and_in_transformers(
    source: Source,
    mini: Checkpoint,
    index_folder: Path,
    train_file: Path,
    tmp_path: Path,
    told: Told,
    lora: LoraOptions | None,
) -> None:
    before, out = digests(index_folder), tmp_path / "out"
    report = run(source, train_file, out, told, replace(TRAINING, lora=lora))
    assert digests(index_folder) == before
    assert (report.trained + report.watched + report.comparison.queries, report.steps) == (QUERIES, 8)
    assert [point.chunk_size for point in report.comparison.points] == [2, 8]
    assert json.loads((out / RUN / "report.json").read_text())["best_step"] == report.best_step > 0
    assert (out / "adapter" / "adapter_model.safetensors").is_file() == (lora is not None)
    assert not (out / RUN / "state.pt").exists()
    assert (out / RUN / "training.png").read_bytes().startswith(b"\x89PNG")
    tuned = open_checkpoint(str(out))
    changed = {name for name in mini.files if not torch.equal(mini.tensor(name), tuned.tensor(name))}
    assert {name for name in changed if not name.startswith("model.decoder.")} == set()
    assert any(name.endswith("q_proj.weight") for name in changed)
    side = load_query_side(tuned, device=torch.device("cpu"), dtype=torch.float32, query_max_length=512)
    reference, states = load_slow_reference(out), torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    prompt = side.tokenize(Prompt("bees in the morning"))
    theirs = reference.margin(prompt.ids, states)
    assert side.margins([prompt], [states], 1)[0] == pytest.approx(theirs, abs=1e-4)
    old = source.index.query_side.margins([prompt], [states], 1)[0]
    assert abs(old - theirs) > 1e-3  # it has learnt something


def test_a_killed_run_goes_on_to_the_same_losses_and_the_same_weights(
    source: Source, train_file: Path, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kalm_cache.finetuning.training.trainer.SAVE_SECONDS", 0.0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(source, train_file, whole, told)

    def kill(progress: Any) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        run(source, train_file, killed, told, shown=replace(told.shown(), on_step=kill))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert [step for step, _, _ in losses(killed)] == [1, 2, 3, 4, 5]
    resumed = Told()
    run(source, train_file, killed, resumed)
    assert [progress.step for progress in resumed.steps] == [6, 7, 8]
    assert losses(killed) == losses(whole)
    name = "model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_another_request_does_not_go_on_in_the_folder_of_a_run(
    source: Source, train_file: Path, tmp_path: Path, told: Told
) -> None:
    short = replace(TRAINING, epochs=0.25)
    run(source, train_file, tmp_path / "out", told, short)
    with pytest.raises(UsageError, match="another training; name another --out"):
        run(source, train_file, tmp_path / "out", told)
    assert run(source, train_file, tmp_path / "out", told, short).steps == 1  # the same one does


def test_the_bundled_and_other_checkpoints_are_not_written_over(
    source: Source, mini_folder: Path, nano_folder: Path, train_file: Path, told: Told
) -> None:
    with pytest.raises(UsageError, match="is the checkpoint that is fine-tuned"):
        run(source, train_file, mini_folder, told)
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        run(source, train_file, nano_folder, told)


def test_texts_are_encoded_once_and_read_from_the_runs_own_cache(
    source: Source, texts: dict[str, str], tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {"query": f"{text} {n}", "pos": [text + " and more"], "neg": [f"other {n}", "other"]}
        for n, text in enumerate(list(texts.values())[:16])
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    encoded: list[int] = []
    from kalm_cache.scoring.passage_side import PassageSide

    encode = PassageSide.encode
    monkeypatch.setattr(PassageSide, "encode", lambda self, batch: encoded.append(len(batch)) or encode(self, batch))
    report = run(source, file, tmp_path / "out", told, replace(TRAINING, epochs=1))
    assert report.trained + report.watched + report.comparison.queries == 16
    assert sum(encoded) == 16 + 16 + 1  # distinct texts: positives, negatives, and the one that all have


def test_mined_examples_have_negatives_by_id(source: Source, train_file: Path, tmp_path: Path, told: Told) -> None:
    examples, counts = mine_negatives(source, Data(train_file), MINING, 0, tmp_path / "texts", told.shown())
    assert len(examples) == counts.queries == QUERIES
    assert {len(example.negatives) >= 3 for example in examples} == {True}
    assert all(item.value in {f"d{n}" for n in range(PASSAGES)} for each in examples for item in each.negatives)


def test_a_loss_that_learns_from_a_teacher_needs_its_scores(
    source: Source, train_file: Path, tmp_path: Path, told: Told
) -> None:
    from kalm_cache.errors import CorpusError

    with pytest.raises(CorpusError, match="no query can be trained on"):
        run(source, train_file, tmp_path / "out", told, replace(TRAINING, loss="margin-mse"))
    assert "--teacher" in told.rejected[0].reason


def test_so_many_minutes_shorten_the_plan(source: Source, train_file: Path, tmp_path: Path, told: Told) -> None:
    report = run(source, train_file, tmp_path / "out", told, replace(TRAINING, epochs=5000, minutes=0.02))
    assert report.steps < 1000


def test_a_decoder_learns_to_isolate_its_prefix_and_then_answers_so(
    source: Source, train_file: Path, tmp_path: Path, told: Told, mini: Checkpoint
) -> None:
    options = replace(TRAINING, loss="distil", isolate_prefix=True)
    report = run(source, train_file, tmp_path / "out", told, options)
    log = [json.loads(line) for line in (tmp_path / "out" / RUN / "log.jsonl").read_text().splitlines()]
    watched = {line["step"]: line["squared_error"] for line in log if line["step"] and "ndcg@10" in line}
    assert report.best_step == min(watched, key=watched.__getitem__)
    tuned = open_checkpoint(str(tmp_path / "out"))
    assert tuned.config.isolated_prefix
    exact = source.index.query_side
    side = load_query_side(tuned, device=exact.device, dtype=torch.float32, query_max_length=512)
    prompt = side.tokenize(Prompt("bees in the morning"))
    states = [passage.states for passage in source.index.pooled([f"d{n}" for n in range(10)])]
    trained = load_trained_decoder(tuned, side.decoder, exact.device, None)
    prefix = len(side.prefix(prompt.prompt))
    with trained.scoring():
        learnt = trained.margins([prompt.ids] * 10, states, [prefix] * 10).tolist()
    assert side.margins([prompt] * 10, states, 8) == pytest.approx(learnt, abs=1e-4)
    whole = load_trained_decoder(mini, exact.decoder, exact.device, None)
    with whole.scoring():
        as_it_was = whole.margins([prompt.ids] * 10, states).tolist()
        untrained = whole.margins([prompt.ids] * 10, states, [prefix] * 10).tolist()
    assert exact.margins([exact.tokenize(prompt.prompt)] * 10, states, 8) == pytest.approx(as_it_was, abs=1e-4)
    errors = [sum((a - b) ** 2 for a, b in zip(each, as_it_was, strict=True)) for each in (untrained, learnt)]
    assert errors[1] < errors[0]


def test_distilling_without_isolation_is_refused() -> None:
    with pytest.raises(UsageError, match="without isolate_prefix nothing would change"):
        TrainingOptions(loss="distil")
