"""The manifests of `configs/ops/kubernetes`: objects, pod templates, and the commands that they run."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import typer
import yaml

from kalm_cache.cli.app import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "ops" / "kubernetes"
GIVEN = {"SHARD": "3", "JOB_COMPLETION_INDEX": "3"}  # what a pod is told of itself

Object = dict[str, Any]


def objects() -> list[Object]:
    files = sorted(FOLDER.glob("*.yaml"))
    return [one for file in files for one in yaml.safe_load_all(file.read_text("utf-8"))]


def named(kind: str, name: str) -> Object:
    return next(one for one in objects() if (one["kind"], one["metadata"]["name"]) == (kind, name))


def templates_in(value: Any) -> list[Object]:
    """Every pod template, however deep."""
    if isinstance(value, list):
        return [one for item in value for one in templates_in(item)]
    if not isinstance(value, dict):
        return []
    if "containers" in value.get("spec", {}):
        return [value]
    return [one for item in value.values() for one in templates_in(item)]


OBJECTS = objects()
SETTINGS = named("ConfigMap", "kalm-cache")["data"]
TEMPLATES = [(one["metadata"]["name"], template) for one in OBJECTS for template in templates_in(one)]


def container_of(template: Object) -> Object:
    (container,) = template["spec"]["containers"]
    return dict(container)


def expanded(text: str, given: dict[str, str] = GIVEN) -> str:
    """With the variables that the kubelet, or a shell, puts in."""
    return re.sub(r"\$\((\w+)\)|\$(\w+)", lambda name: (SETTINGS | given)[name[1] or name[2]], text)


def parsed(arguments: list[str]) -> tuple[str, Object]:
    """The command that they name, and its parameters, as the command line reads them."""
    command: Any = typer.main.get_command(app)
    words, path = list(arguments), []
    while hasattr(command, "commands"):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    return " ".join(path), command.make_context("kalm-cache", words).params


@functools.cache
def commands() -> dict[str, Object]:
    """Parameters, as parsed, of every container that runs kalm-cache, and of every entrypoint of Ray."""
    found = {}
    for name, template in TEMPLATES:
        if "args" in container_of(template):
            command, params = parsed([expanded(word) for word in container_of(template)["args"]])
            found[f"{name}: {command}"] = params
    for one in OBJECTS:
        if "entrypoint" in one.get("spec", {}):
            program, *words = expanded(one["spec"]["entrypoint"]).split()
            assert program == "kalm-cache"
            command, params = parsed(words)
            found[f"{one['metadata']['name']}: {command}"] = params
    return found
