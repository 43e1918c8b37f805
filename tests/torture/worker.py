"""A process that imports torch and FAISS and loads the models once, and forks a child for each step asked for.

    python -m tests.torture.worker MODELS      requests on stdin, answers on stdout, one JSON object a line

The child is armed with the request's fault and runs the step; what it encodes, and what the step returns or raises,
goes through a pipe, so that it is known however the child ends. See client.py.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kalm_cache.errors import KalmCacheError
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import PassageSide
from tests.torture import shim
from tests.torture.models import load_models

# imported before any fork
STEPS = tuple(f"tests.torture.{name}" for name in ("scenarios", "flipping", "sending", "steps", "caching"))


def main() -> None:
    """Serve requests until stdin ends."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    load_models(Path(sys.argv[1]))
    for module in STEPS:
        importlib.import_module(module)
    gc.collect()
    gc.disable()  # a collection would copy every page that it looks at into the child
    gc.freeze()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), file=answers, flush=True)


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        try:
            _run(request, sending)
        finally:
            os._exit(99)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        said = [json.loads(line) for line in pipe if line.endswith(b"\n")]
    _, status = os.waitpid(child, 0)
    answer: dict[str, Any] = {"encoded": [one["encoded"] for one in said if "encoded" in one]}
    for one in said:
        answer |= {name: one[name] for name in ("result", "error", "calls") if name in one}
    sign = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    return answer | {"signal": sign, "exit": exit_code, "seconds": time.monotonic() - started}


def _run(request: dict[str, Any], pipe: int) -> None:
    """In the child: the step, under its fault."""
    signal.alarm(request["timeout_s"])
    module, name = request["step"].split(":")
    step = getattr(importlib.import_module(module), name)
    arguments = {key: Path(value) if key in request["paths"] else value for key, value in request["arguments"].items()}
    _report_encoding(pipe)
    fault = request["fault"]
    if fault is not None:
        fault = shim.Fault(**(fault | {"mode": shim.Mode(fault["mode"])}))
        shim.arm(Path(request["watched"]), fault, Path(request["shadow"]) if request["shadow"] else None)
    said = _outcome(step, arguments)
    if fault is not None:
        shim.disarm()
        said["calls"] = shim.traced() if fault.mode == shim.Mode.COUNT else []
    _say(pipe, said)
    os._exit(0 if "result" in said else 1)


def _outcome(step: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": step(**arguments)}
    except BaseException as exc:
        on_purpose = isinstance(exc, KalmCacheError)
        error = {"type": type(exc).__name__, "message": str(exc), "on_purpose": on_purpose}
        error["is_os_error"] = isinstance(exc, OSError)
        return {"error": error | {"traceback": traceback.format_exc()}}


def _say(pipe: int, said: dict[str, Any]) -> None:
    line = json.dumps(said).encode() + b"\n"
    while line:
        line = line[os.write(pipe, line) :]


def _report_encoding(pipe: int) -> None:
    """Say which passages each batch holds, before it is encoded."""
    encode = PassageSide.encode

    def reported(self: PassageSide, batch: Sequence[Tokens]) -> list[Tensor]:
        _say(pipe, {"encoded": [zlib.crc32(json.dumps(list(tokens.ids)).encode()) for tokens in batch]})
        return encode(self, batch)

    PassageSide.encode = reported  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
