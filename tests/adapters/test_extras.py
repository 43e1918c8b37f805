from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("KaLMCompressor", "langchain_core", "langchain"),
        ("KaLMPostprocessor", "llama_index", "llama-index"),
        ("KaLMRanker", "haystack", "haystack"),
    ],
)
def test_a_missing_library_is_an_error_that_names_the_extra(name: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from kalm_cache.errors import MissingExtraError\n"
        f"try:\n    from kalm_cache.adapters import {name}\n"
        f"except MissingExtraError as exc:\n    print(exc)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'kalm-cache[{extra}]'" in result.stdout


def test_importing_the_adapters_and_the_clients_loads_none_of_the_heavy_libraries() -> None:
    heavy = ("torch", "numpy", "langchain_core", "llama_index", "haystack")
    code = (
        "import sys, kalm_cache.adapters; from kalm_cache.adapters import KaLMCrossEncoder\n"
        "from kalm_cache import Client\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_other_names_are_attribute_errors() -> None:
    import kalm_cache.adapters

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kalm_cache.adapters.nothing  # noqa: B018
