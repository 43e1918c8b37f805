"""Python functions: what the docstring says first, and the function without its docstring."""

import ast
import random
import re
import textwrap
import warnings
from collections.abc import Iterator

from training.text.fetch import Package, Source
from training.text.passage import Item, clean, sentences, words

MAX_FUNCTIONS = 700  # of one package, more or less
MAX_MODULE_BYTES = 200_000
OTHERS = r"(^|/)(tests?|testing|_?vendor|_vendored|extern)/|test_"


def read_code(package: Package, source: Source) -> Iterator[Item]:
    """The documented functions of a package whose metadata state a permissive licence."""
    if not is_permissive(package):
        print(f"  {package.name}: left out for its licence", flush=True)
        return
    modules = [(name, data) for name, data in package.files(r"\.py$", OTHERS) if len(data) < MAX_MODULE_BYTES]
    random.Random(package.name).shuffle(modules)
    found = 0
    for name, data in modules:
        for item in function_items(name, data.decode("utf-8", "replace")):
            found += 1
            yield item
        if found >= MAX_FUNCTIONS:
            break


def is_permissive(package: Package) -> bool:
    """Whether the package's own metadata name a licence, and no copyleft, non-commercial or proprietary one."""
    for _, data in package.files(r"dist-info/METADATA$|^[^/]+/PKG-INFO$"):
        head = data.decode("utf-8", "replace").split("\n\n")[0]
        stated = " ".join(re.findall(r"(?im)^(?:License(?:-Expression)?:|Classifier: License ::)(.*)", head))
        # That of a bundled compiler library, not of the Python code:
        stated = stated.replace("GPL-3.0-or-later WITH GCC-exception-3.1", "")
        return bool(stated) and not re.search(r"(?i)GPL|General Public|non-?commercial|proprietary|\bNC\b", stated)
    return False


def function_items(path: str, text: str) -> Iterator[Item]:
    """The documented functions of one module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.splitlines()
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        query = docstring_query(ast.get_docstring(node) or "")
        if not query:
            continue
        start, end = node.body[0].lineno - 1, node.body[0].end_lineno or node.body[0].lineno
        kept = [*lines[node.lineno - 1 : start], *lines[end : node.end_lineno]]
        code = textwrap.dedent("\n".join(line.rstrip() for line in kept if line.strip()))
        if 4 <= len(kept) <= 60 and len(code) < 2500:
            yield Item(module, code, query)


def docstring_query(docstring: str) -> str | None:
    """The docstring's first sentence, where it says in plain words what the function does."""
    if len(docstring) > 8000:
        return None
    first = clean(re.sub(r":\w+:`~?([^`]*)`|`{1,2}([^`]*)`{1,2}", r"\1\2", docstring.split("\n\n")[0]))
    query = sentences(first)[0].rstrip(".")
    plain = query.isascii() and not re.search(r"(?i)deprecated|^(see|todo|test)\b|[{}<>|]|>>>", query)
    return query if plain and 4 <= words(query) <= 30 else None
