"""What a reader copies from a page works, and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from kalm_cache.cli.app import app
from kalm_cache.evaluation.config import load_eval_config
from kalm_cache.settings import load_settings
from tests.docs.outputs import same_output
from tests.docs.pages import PAGES, ROOT, SHELL, Block, blocks_of, commands_in

ADDRESS = "http://127.0.0.1:8080"  # what pages call the service


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page: Path, readers_folder: Path, service_url: str) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(page):
        if block.action == "file":
            (readers_folder / block.argument).write_text(block.text, "utf-8")
        elif block.action == "output":
            same_output(block.text, printed)
        elif block.language == "python":
            printed = run_python(block, names, service_url)
        elif block.action == "run":
            printed = run_shell(block, service_url)


def run_python(block: Block, names: dict[str, Any], service_url: str) -> str:
    """What the block prints; its names stay for the blocks after it."""
    source = "\n" * block.line + block.text.replace(ADDRESS, service_url)
    code = compile(source, str(block), "exec")
    if block.action == "not run":
        assert block.argument, f"{block}: say why it is not run"
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, names)
    return out.getvalue()


def run_shell(block: Block, service_url: str) -> str:
    """What its commands print on stdout, in this process."""
    runners: dict[str, Callable[[list[str]], tuple[int, str]]] = {"kalm-cache": _kalm_cache, "curl": _curl}
    printed, codes = "", []
    for command in commands_in(block.text.replace(ADDRESS, service_url)):
        program, *arguments = shlex.split(command)
        assert program in runners, f"{block}: {program} is not run here"
        code, out = runners[program](arguments)
        printed += out
        codes.append(code)
    assert codes[-1] == int(block.argument.removeprefix("exit ") or 0), f"{block}: {codes}"
    return printed


def _kalm_cache(arguments: list[str]) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout


def _curl(arguments: list[str]) -> tuple[int, str]:
    """As `curl -s URL [-H HEADER] [-d BODY]` does."""
    given = {"-d": None, "-H": None} | dict(pairwise(arguments))
    url = next(word for word in arguments if word.startswith("http"))
    headers = dict([given["-H"].split(": ")]) if given["-H"] else {}
    body = given["-d"]
    answer = httpx.get(url) if body is None else httpx.post(url, content=body, headers=headers, timeout=60)
    return 0, answer.text


def settings_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


@pytest.mark.parametrize("block", settings_blocks("toml"), ids=str)
def test_toml_blocks_are_settings_or_evaluations(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(block.text, "utf-8")
    content = tomllib.loads(block.text)
    read = load_eval_config(file) or load_settings(file)
    assert read.model_fields_set == set(content)


@pytest.mark.parametrize("block", [block for block in settings_blocks("json") if "…" not in block.text], ids=str)
def test_json_blocks_parse(block: Block) -> None:
    lines = [block.text] if block.text.lstrip().startswith("{\n") else block.text.splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_the_readme_shows_python_that_runs_and_what_it_prints() -> None:
    blocks = blocks_of(ROOT / "README.md")
    assert [block.language for block in blocks if block.action == "output"] == ["text", "json"]
    assert sum(block.language == "python" and not block.action for block in blocks) == 1
    assert sum(block.language in SHELL for block in blocks) >= 4
