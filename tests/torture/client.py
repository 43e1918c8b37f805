"""Asks a worker (worker.py) to run steps in children that start with the shim inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.torture import shim
from tests.torture.shim import Call, Fault

REPOSITORY = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: `signal` that killed its child or 0; what it returned or raised; what it encoded, by batch."""

    signal: int
    result: Any = None
    error: dict[str, Any] | None = None
    encoded: list[list[int]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def problem(self) -> str | None:
        """What went wrong, if anything did."""
        if self.signal:
            return f"killed by signal {self.signal}"
        return None if self.error is None else f"{self.error['type']}: {self.error['message']}"


class Worker:
    """One worker process. Use as a context manager; not for several threads at once."""

    def __init__(self, models: Path, log: Path) -> None:
        """Start it; it loads `models`, and what libraries print goes to `log`."""
        self._log = log
        environment = os.environ | ONE_THREAD | shim.preloaded() | {"PYTHONHASHSEED": "0"}
        with log.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.worker", str(models)],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        self._answer()  # its models are loaded

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(60)

    def run(
        self,
        step: str,
        /,
        *,
        fault: Fault | None = None,
        watched: Path | None = None,
        shadow: Path | None = None,
        timeout_s: int = 1200,  # by the clock: the machine may be busy
        **arguments: Any,
    ) -> Outcome:
        """Run `module:function` with these arguments in a child armed with `fault` for the folder `watched`.

        `shadow`: where a counted child keeps what each file holds when it is synced.
        """
        request = {
            "step": step,
            "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
            "paths": [name for name, value in arguments.items() if isinstance(value, Path)],
            "fault": None if fault is None else asdict(fault),
            "watched": str(watched),
            "shadow": None if shadow is None else str(shadow),
            "timeout_s": timeout_s,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Outcome(
            answer["signal"],
            answer.get("result"),
            answer.get("error") or _unsaid(answer),
            answer["encoded"],
            [Call(*call) for call in answer.get("calls", [])],
            answer["seconds"],
        )

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait(10)}:\n{self._log.read_text()[-5000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _unsaid(answer: dict[str, Any]) -> dict[str, Any] | None:
    if answer["signal"] or "result" in answer:
        return None
    return {
        "type": "NoReport",
        "message": f"the child exited with {answer['exit']} and said nothing",
        "on_purpose": False,
        "is_os_error": False,
    }
