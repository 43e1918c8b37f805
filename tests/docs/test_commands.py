"""Every command line that a page shows is one that exists, with flags that exist."""

from __future__ import annotations

import re
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from kalm_cache.cli.app import app
from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.middleware.metrics import Metrics
from tests.docs.pages import PAGES, ROOT, SHELL, Block, blocks_of, commands_in, prose_of

SHELL_BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language in SHELL]
OPERATORS = {"|", ">", "&", "&&", "<"}
ASSIGNMENT = re.compile(r"\w+=.*")


def words_of(command: str) -> list[str]:
    """The words of the first program of a command line, without variables before it."""
    words = shlex.split(command)
    end = next((i for i, word in enumerate(words) if word in OPERATORS), len(words))
    start = next((i for i, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), 0)
    return words[start:end]


def flags_of(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words after `kalm-cache` name, and what follows."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"kalm-cache has no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def source_of(module: str) -> str:
    """The text of a module, or of all modules of a package that `python -m` runs."""
    place = ROOT / module.replace(".", "/")
    files = sorted(place.glob("*.py")) if (place / "__main__.py").is_file() else [place.with_suffix(".py")]
    return "\n".join(file.read_text("utf-8") for file in files)


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_command_lines_of_a_block_parse(block: Block) -> None:
    for line in commands_in(block.text):
        program, *words = words_of(line)
        if program == "kalm-cache":
            command, rest = command_of(words)
            command.make_context("kalm-cache", rest, resilient_parsing=False)
        elif program == "python" and words[:1] == ["-m"] and words[1].split(".")[0] in ("benchmarks", "tests"):
            source = source_of(words[1])
            assert [flag for flag in flags_of(words) if f'"{flag}"' not in source] == [], line
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
            assert [word for word in words if word not in targets and "=" not in word] == [], line


def test_commands_in_the_prose_of_a_page_exist() -> None:
    spans = [span for page in PAGES for span in re.findall(r"`kalm-cache ([^`]+)`", prose_of(page))]
    assert len(spans) > 20
    for span in spans:
        command, rest = command_of(span.split())
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
        assert [flag for flag in flags_of(rest) if flag not in known] == [], span


def test_the_readme_names_every_command() -> None:
    table = prose_of(ROOT / "README.md")
    commands: Any = typer.main.get_command(app)
    assert [name for name in commands.commands if f"`kalm-cache {name}" not in table] == []


def test_the_http_page_names_every_path() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text("utf-8")
    assert [path for path in served_paths() if f"`{path}`" not in page] == []


def served_paths() -> list[str]:
    """Of the application; it is described without a service behind it."""
    settings = load_settings()
    service: Any = SimpleNamespace(settings=settings, metrics=Metrics(), tracing=None)
    return list(create_app(service).openapi()["paths"])
