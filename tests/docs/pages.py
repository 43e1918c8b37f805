"""The pages of the guide, and the fenced blocks in them. Knows nothing of what the blocks mean.

A comment on the line before a fence says what a test does with the block:

    <!-- file: NAME -->      the block is a file of the reader's folder
    <!-- run -->             shell commands that are run; `<!-- run: exit 3 -->` where they end with another code
    <!-- output -->          what the last block that ran printed; `…` stands for anything
    <!-- not run: WHY -->    Python that is compiled only
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDE]
SHELL = ("bash", "console", "sh")
COMMENT = re.compile(r"\s*<!-- (file|run|output|not run)(?:: (.*?))? -->\s*")
FENCE = re.compile(r"(\s*)(`{3,})(\w*).*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it stands, its language, and what the comment before it says."""

    page: Path
    line: int
    language: str
    text: str
    action: str = ""
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The page's blocks, in order; `line` is that of the fence, counted from 1."""
    lines = page.read_text("utf-8").splitlines()
    found, at = [], 0
    while at < len(lines):
        opened = FENCE.fullmatch(lines[at])
        if opened:
            start, at = at, next(i for i in range(at + 1, len(lines)) if lines[i].strip() == opened[2])
            comment = COMMENT.fullmatch(lines[start - 1]) if start else None
            action, argument = (comment[1], comment[2] or "") if comment else ("", "")
            text = "\n".join(line.removeprefix(opened[1]) for line in lines[start + 1 : at]) + "\n"
            found.append(Block(page, start + 1, opened[3], text, action, argument))
        at += 1
    return found


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^([ \t]*)(`{3,}).*?^\1\2[ \t]*$", "", page.read_text("utf-8"), flags=re.S | re.M)


def commands_in(text: str) -> list[str]:
    """The commands of a shell block: comments and prompts gone, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    commands = (re.sub(r"(^|\s)#.*", "", line).removeprefix("$ ").strip() for line in lines)
    return [command for command in commands if command]
