"""A group of options becomes flags, and comes to the command as one value."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer
from typer.testing import CliRunner

from kalm_cache.cli.option_groups import with_flags

Shared = Annotated[int, typer.Option("--shared", help="In two groups.")]


@dataclass(frozen=True, slots=True)
class Colours:
    panel: ClassVar = "Colours of it"
    front: Annotated[str, typer.Option("--front", "--ink", help="What is drawn.")] = "black"
    shared: Shared = 3


@dataclass(frozen=True, slots=True)
class Input:
    file: Annotated[str, typer.Argument(help="What is read.")]
    strict: Annotated[bool, typer.Option("--strict", help="Refuse more.")] = False


@dataclass(frozen=True, slots=True)
class Other:
    panel: ClassVar = "Other"
    shared: Shared = 4


def paint(source: Input, colours: Colours, times: Annotated[int, typer.Option("--times")] = 1) -> None:
    """Paint a file."""
    print(source, colours, times)


def run(*arguments: str) -> tuple[int, str]:
    paint_app = typer.Typer(add_completion=False)
    paint_app.command()(with_flags(paint))
    result = CliRunner().invoke(paint_app, arguments, env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    return result.exit_code, result.stdout


def test_the_command_gets_a_value_of_each_group_with_what_was_given_and_defaults_of_the_rest() -> None:
    assert run("a.txt", "--ink", "red", "--strict") == (
        0,
        f"{Input('a.txt', True)} {Colours('red', 3)} 1\n",
    )
    assert run("a.txt", "--shared", "5", "--times", "2") == (0, f"{Input('a.txt', False)} {Colours('black', 5)} 2\n")


def test_what_a_group_requires_is_required() -> None:
    assert run("--ink", "red")[0] == 2


def test_help_shows_every_flag_with_its_help_and_those_of_a_panel_in_their_own_box() -> None:
    exit_code, text = run("--help")
    plain, panel = text.split("Colours of it")
    assert exit_code == 0
    assert "Paint a file." in plain
    assert all(shown in plain for shown in ("file", "What is read.", "--strict", "Refuse more.", "--times"))
    assert all(shown in panel for shown in ("--front,--ink", "What is drawn.", "black", "--shared", "In two groups."))
    assert "--strict" not in panel


def test_an_option_of_two_groups_stays_in_the_panel_of_each() -> None:
    def panel_of(group: type) -> str | None:
        def command(group: object) -> None: ...

        command.__annotations__["group"] = group
        (parameter,) = (p for p in inspect.signature(with_flags(command)).parameters.values() if p.name == "shared")
        return parameter.annotation.__metadata__[0].rich_help_panel

    assert (panel_of(Colours), panel_of(Other)) == ("Colours of it", "Other")
