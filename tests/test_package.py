"""The package as a whole: what importing it costs, and that container files say what the command line takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from kalm_cache.cli.app import app

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"


@pytest.mark.parametrize(
    "module", ["kalm_cache", "kalm_cache.cli", "indexer", "query_service", "kalm_cache.first_stage"]
)
def test_importing_loads_none_of_the_heavy_libraries(module: str) -> None:
    heavy = ("torch", "transformers", "faiss", "Stemmer", "model2vec", "lmdb", "fastapi")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_are_found_and_others_are_attribute_errors() -> None:
    import kalm_cache

    assert {kalm_cache.KaLMReranker.__name__, kalm_cache.PassageIndex.__name__} == {"KaLMReranker", "PassageIndex"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kalm_cache.nothing  # noqa: B018


@pytest.mark.parametrize("service", ["index", "query-service"])
def test_the_commands_of_the_compose_file_are_ones_that_the_command_line_takes(service: str) -> None:
    name, *arguments = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"][service]["command"]
    arguments = [argument.replace("${CONFIG:-tiny}", "tiny") for argument in arguments]
    group = typer.main.get_command(app)
    command = group.get_command(group.make_context("kalm-cache", [name, *arguments]), name)  # type: ignore[attr-defined]
    parsed = command.make_context(name, arguments).params
    assert parsed["index"] == "/index"
    assert (ROOT / parsed["config"]).is_file()


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run([docker, "compose", "--profile", "index", "config", "--quiet"], cwd=ROOT, check=True)
