"""A group of options: a dataclass whose fields become one flag each. Knows no command and no option.

    @dataclass(frozen=True, slots=True)
    class ModelOptions:
        panel: ClassVar = "Model"  # title of the group's box in --help; without it, the flags stand among the others
        model: Annotated[str | None, typer.Option("--model")] = None

    def search(query: Annotated[str, typer.Argument()], model: ModelOptions) -> None: ...

`with_flags(search)` takes `--model` and calls `search` with a `ModelOptions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a group is replaced by one for each field of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @wraps(command)
    def flat(**values: Any) -> None:
        grouped = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **grouped)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        parameters += _flags_of(groups[name]) if name in groups else [_flag(name, hints[name], parameter.default)]
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _flags_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    panel = getattr(group, "panel", None)
    return [
        _flag(
            field.name,
            _in_panel(hints[field.name], panel) if panel else hints[field.name],
            inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)
    ]


def _flag(name: str, hint: Any, default: Any) -> inspect.Parameter:
    # keyword-only: groups with and without defaults may stand in any order
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _in_panel(hint: Any, panel: str) -> Any:
    kind, option = get_args(hint)
    option = copy(option)  # several groups may share it
    option.rich_help_panel = panel
    return Annotated[kind, option]
