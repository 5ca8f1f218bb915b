"""The parameters of a command as a program gives them, checked by the table. Pure code."""

from __future__ import annotations

from typing import Any

from peerd import validate
from peerd.commands import BY_NAME
from peerd.errors import Code, PeerdError


def command_name(value: object) -> str:
    """The name of a command that a program may call: every one but help.

    :raises ValueError: with a sentence
    """
    command = BY_NAME.get(value) if isinstance(value, str) else None
    if command is None or command.argument:
        raise ValueError(f"no such command: {validate.shown(value)}")
    return command.name


def check(name: str, given: object) -> dict[str, Any]:
    """The parameters of a command by name, as the table's parsers return them; None is none.

    :raises PeerdError: BAD_MESSAGE, USAGE
    """
    command = BY_NAME[name]
    options = {option.name: option for option in command.options}
    rest = [command.rest] if command.rest else []
    pairs = {} if given is None else given
    if not isinstance(pairs, dict):
        raise PeerdError(Code.BAD_MESSAGE, reason="params must be an object")
    unknown = [key for key in pairs if key not in [*options, *rest]]
    missing = [key for key, option in options.items() if option.required and key not in pairs]
    if unknown or missing:
        wrong = [f"unknown {validate.shown(key)}" for key in unknown] + [f"missing '{key}'" for key in missing]
        raise PeerdError(Code.USAGE, reason=f"{name}: {', '.join(wrong)}", command=name)
    checked = {}
    for key, value in pairs.items():
        try:
            checked[key] = options[key].check(value) if key in options else validate.arguments(value)
        except ValueError as error:
            raise PeerdError(Code.USAGE, reason=f"{name}: {key}: {error}", command=name) from None
    return checked
