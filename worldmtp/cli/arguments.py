"""Values of a command line that several commands read: counts, seeds, and what an environment is made with."""

import argparse
import json
from collections.abc import Sequence
from typing import Any


def parse_kwargs(settings: Sequence[str]) -> dict[str, Any]:
    """What ``--kwargs`` was given: JSON objects, and ``key=value`` with dots for nesting and JSON or text as value.

    Raises:
        ValueError: a setting is neither.
    """
    kwargs: dict[str, Any] = {}
    for setting in settings:
        if setting.lstrip().startswith("{"):
            try:
                kwargs |= json.loads(setting)
            except json.JSONDecodeError as error:
                raise ValueError(f"--kwargs {setting!r} is no JSON object: {error}.") from error
            continue
        key, equals, value = setting.partition("=")
        *outer, last = key.split(".")
        if not equals or not last or not all(outer):
            raise ValueError(f"--kwargs {setting!r} must be key=value, as max_new=9, or a JSON object.")
        inner = kwargs
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--kwargs {setting!r}: {name!r} has the value {inner!r} already, and so no keys.")
        inner[last] = _value(value)
    return kwargs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def positive(text: str) -> int:
    """Return a count of the command line."""
    return _whole(text, 1)


def whole_seed(text: str) -> int:
    """Return a seed of the command line."""
    return _whole(text, 0)


def _whole(text: str, smallest: int) -> int:
    if not text.isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {smallest} on.")
    return int(text)
