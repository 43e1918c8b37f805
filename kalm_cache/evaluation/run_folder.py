"""A folder of finished systems: what a stopped evaluation goes on from, and where its TREC runs are.

FOLDER/settings.json   what its systems have in common, and the facts of the index
FOLDER/SYSTEM.trec     what a system ranked
FOLDER/SYSTEM.json     its name, kind and cost; written last: a system that has it is finished
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.evaluation.collections.trec import read_run, write_run
from kalm_cache.evaluation.systems import Cost, System
from kalm_cache.storage.durable import write_atomically

SETTINGS = "settings.json"


class RunFolder:
    """The systems of one collection under one `key` of settings."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        """Open or make the folder.

        Raises:
            UsageError: it holds systems of other settings; names them.
        """
        self.folder, self.key = folder, json.loads(json.dumps(key))
        folder.mkdir(parents=True, exist_ok=True)
        stored = self._read(SETTINGS)
        self._facts: dict[str, Any] | None = None
        if stored is not None:
            self._check(stored["key"])
            self._facts = stored["facts"]

    def load_facts(self) -> dict[str, Any] | None:
        """What `save_facts` stored; `None` where nothing has been."""
        return self._facts

    def save_facts(self, facts: dict[str, Any]) -> None:
        """Keep facts of the index beside the settings."""
        self._facts = facts
        self._write(SETTINGS, {"key": self.key, "facts": facts})

    def load(self, name: str, queries: Collection[str]) -> System | None:
        """The system called `name`, `None` where it is not finished. Raises `CorpusError` when it is damaged."""
        stored = self._read(f"{_file_name(name)}.json")
        if stored is None:
            return None
        path = self.folder / f"{_file_name(name)}.trec"
        run = read_run(path, queries, lambda _: True) if path.is_file() and path.stat().st_size else {}
        return System(stored["name"], stored["kind"], run, Cost(**stored["cost"]))

    def save(self, system: System) -> None:
        """Keep a finished system."""
        name = _file_name(system.name)
        write_run(self.folder / f"{name}.trec", system.run, f"kalm-cache:{name}")
        self._write(f"{name}.json", {"name": system.name, "kind": system.kind, "cost": asdict(system.cost)})

    def _check(self, stored: dict[str, Any]) -> None:
        names = sorted(stored.keys() | self.key.keys())
        differing = [name for name in names if stored.get(name) != self.key.get(name)]
        if differing:
            sides = "; ".join(f"{name} was {stored.get(name)!r}, is {self.key.get(name)!r}" for name in differing)
            raise UsageError(f"{self.folder} holds runs of other settings: {sides}; give another --out, or remove it")

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as exc:
            raise CorpusError(f"{path}: cannot be read: {exc}; remove it to run this again") from exc

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _file_name(system: str) -> str:
    """`int8 r=4` -> `int8-r4`."""
    return re.sub(r"[^\w.+-]+", "-", system.replace("=", ""))
