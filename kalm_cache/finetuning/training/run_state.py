"""What a run has so far, in the `finetune` folder of the checkpoint that it makes: data, log, weights. A kill at any
time leaves a run that goes on.

run.json     what the run was asked for; another request is refused
train.jsonl, watch.jsonl, report.jsonl   the queries of each part, in FlagEmbedding's format
log.jsonl    a line a step, and one for each watch
state.pt     weights, optimizer and the best weights so far, of the step that it names
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.finetuning.data.example import Example, read_record, write_record
from kalm_cache.finetuning.data.split import Split
from kalm_cache.storage.durable import publish_file, write_atomically

PARTS = ("train", "watch", "report")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    folder: Path

    @property
    def log(self) -> Path:
        """`log.jsonl`."""
        return self.folder / "log.jsonl"

    def begin(self, request: Mapping[str, Any]) -> None:
        """Make the folder for a request, or find that it holds a run of the same one.

        Raises:
            UsageError: it holds a run of another request; names what differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, content = self.folder / "run.json", json.dumps(dict(request), indent=2, default=str)
        if not path.is_file():
            write_atomically(path, content.encode())
            return
        before, now = json.loads(path.read_text("utf-8")), json.loads(content)
        different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if different:
            raise UsageError(
                f"{self.folder} holds a run with another {', '.join(different)}; name another --out, or remove it"
            )

    def load_split(self) -> Split | None:
        """The parts that an earlier process drew and mined; `None` = it did not come so far."""
        if not self._path(PARTS[-1]).is_file():
            return None
        return Split(*(self._read(part) for part in PARTS))

    def save_split(self, split: Split) -> None:
        """Keep the parts; the last file says that all are there."""
        for part in PARTS:
            write_examples(self._path(part), getattr(split, part))

    def _read(self, part: str) -> list[Example]:
        path = self._path(part)
        lines = path.read_text("utf-8").splitlines()
        return [read_record(json.loads(line), f"{path}:{number}") for number, line in enumerate(lines, start=1)]

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.jsonl"

    def load_state(self) -> dict[str, Any] | None:
        """What `save_state` wrote last. Raises `StoreError` for a damaged file."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as exc:  # torch raises many kinds
            raise StoreError(f"{path} cannot be read: {exc}; remove {self.folder} and start again") from exc
        return state

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state in one step."""
        beside = self.folder / "state.pt.tmp"
        torch.save(dict(state), beside)
        publish_file(beside, self.folder / "state.pt")

    def forget_state(self) -> None:
        """Remove the state: what came of it is written."""
        (self.folder / "state.pt").unlink(missing_ok=True)

    def log_lines(self) -> list[dict[str, Any]]:
        """The log, without a last line that a kill cut short."""
        lines = []
        for line in self.log.read_text("utf-8").splitlines() if self.log.is_file() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines

    def cut_log(self, step: int) -> None:
        """Drop what was logged after `step` steps: it will be done again."""
        kept = [line for line in self.log_lines() if line["step"] <= step]
        write_atomically(self.log, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append(self, line: Mapping[str, Any]) -> None:
        """Log one line."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")


def write_examples(path: Path, examples: Sequence[Example] | Iterable[Example]) -> int:
    """Examples as FlagEmbedding's JSON lines, in one step; returns how many."""
    lines = [json.dumps(write_record(example), ensure_ascii=False) + "\n" for example in examples]
    write_atomically(path, "".join(lines).encode())
    return len(lines)
