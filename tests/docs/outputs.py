"""Whether a command printed what a page shows. Floats agree to three digits; times and sizes need not agree."""

from __future__ import annotations

import re

import pytest

FLOAT = r"-?\d+\.\d+(?:e-?\d+)?"
UNITS = r"(?:s|ms|B|[KMG]iB|times)"
TOKEN = re.compile(
    rf"(?P<anything>…)|(?P<measured>[\d.,]+ {UNITS}\b)|(?P<float>{FLOAT})|(?P<space>\s+)|(?P<text>.)", re.S
)


def same_output(shown: str, printed: str) -> None:
    """Assert that `printed` is what the page shows; in a line of stage times (`ms: …`) no number has to agree."""
    shown = re.sub(r"^ms: .*$", "ms: …", shown, flags=re.M).strip()
    pattern = "".join(_pattern(token) for token in TOKEN.finditer(shown))
    match = re.fullmatch(pattern, printed.strip(), re.S)
    both = f"the page shows\n{shown}\n\nprinted was\n{printed}"
    assert match, both
    expected = [float(token["float"]) for token in TOKEN.finditer(shown) if token["float"]]
    assert [float(number) for number in match.groups()] == pytest.approx(expected, abs=1e-3), both


def _pattern(token: re.Match[str]) -> str:
    if token["anything"]:
        return ".*?"
    if token["measured"]:
        return r"[\d.,]+ " + token["measured"].split()[-1]
    if token["float"]:
        return rf"({FLOAT})"
    return r"\s*" if token["space"] else re.escape(token["text"])
