"""Pages link to what exists, and the guide holds every page once."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import GUIDE, PAGES, ROOT, prose_of

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ROOMS = "kalm_cache|indexer|query_service|tests|benchmarks|configs|training|docs"
PATH = re.compile(rf"`((?:{ROOMS})(?:/[\w.-]+)+/?)`")
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.M)


def anchors_of(page: Path) -> set[str]:
    """What headings are linked by, as Python-Markdown makes it."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    plain = (unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode() for title in titles)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in plain}


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors_of(target))


def test_links_within_the_pages_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in LINK.findall(prose_of(page)) if not link.startswith("http")]
    assert len(links) > 20
    assert [(page.name, link) for page, link in links if not leads_somewhere(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    assert [name for name in PATH.findall(page.read_text("utf-8")) if not (ROOT / name).exists()] == []


def test_the_map_of_layers_is_that_of_the_import_contracts() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [layer.replace("|", "│") for contract in contracts for layer in contract.get("layers", ())]
    page = (ROOT / "docs" / "how-it-works.md").read_text("utf-8")
    drawn = re.split(r"\n|\s{2,}", page.partition("## Which room imports which")[2])  # two maps stand side by side
    assert len(layers) > 20
    assert [layer for layer in layers if layer not in drawn] == []


def test_the_guide_holds_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml without the Python tags of its extensions."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    assert sorted(_files(config["nav"])) == sorted(page.name for page in GUIDE)


def _files(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [name for part in (nav.values() if isinstance(nav, dict) else nav) for name in _files(part)]


def test_documented_names_exist() -> None:
    names = DIRECTIVE.findall((ROOT / "docs" / "python-api.md").read_text("utf-8"))
    assert {"kalm_cache.reranker.KaLMReranker", "kalm_cache.index.PassageIndex"} <= set(names)
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = import_module(path)
        assert attribute in getattr(module, "__all__", dir(module)), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000
