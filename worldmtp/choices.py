"""What a user writes, checked: names from a closed set, and plain values that become a config's dataclass."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raise if a value is not one of the choices.

    Raises:
        ValueError: ``value`` is not among ``choices``; the message names them, and the nearest where one is near.
    """
    known = list(choices)
    if value not in known:
        raise ValueError(f"{what}={value!r} is unknown{did_you_mean(value, known, ';')} choose from {known}.")


def did_you_mean(value: object, choices: Iterable[str], otherwise: str = ".") -> str:
    """Return "; did you mean 'x'?" for the nearest choice, to end a message with; ``otherwise`` if none is near."""
    found = nearest(value, choices)
    return otherwise if found is None else f"; did you mean {found!r}?"


def nearest(value: object, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that is nearest in spelling, None if none is as similar as ``cutoff`` (0 to 1)."""
    from difflib import get_close_matches  # here: only a mistake pays for it

    return next(iter(get_close_matches(str(value), list(choices), n=1, cutoff=cutoff)), None)


def checked_fields(cls: type, values: Any, what: str, path: str = "") -> dict[str, Any]:
    """Return a dataclass's arguments from plain values, as JSON and YAML have them.

    Scalars, lists of them and nested dataclasses are checked against the fields' types; ranges are the class's own
    business. ``what`` names the whole in error messages, and ``path`` leads to its fields there.

    Raises:
        ValueError: a key is unknown (the nearest is suggested), or a field without a default is missing.
        TypeError: a value is of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} is {values!r}; give a mapping of {cls.__name__}'s fields.")
    known = {item.name: item for item in fields(cls)}
    prefix = f"{path}." if path else ""
    for key in values:
        check_choice(f"a key of {what}", str(key), known)
    needed = [name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}; give a value, as {prefix}{missing[0]}=...")
    return {key: _converted(known[key].type, value, prefix + key) for key, value in values.items()}


def _converted(kind: Any, value: Any, path: str) -> Any:
    """Return the value as its field wants it: an integer becomes a float there, and a list a tuple."""
    if is_dataclass(kind) and isinstance(kind, type):
        return kind(**checked_fields(kind, value, path, path))
    if get_origin(kind) in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{path}={value!r} must be a list, as [{value!r}].")
        inner = get_args(kind)[0]
        return get_origin(kind)(_converted(inner, item, f"{path}[{index}]") for index, item in enumerate(value))
    allowed = get_args(kind) or (kind,)  # X | None has arguments, a plain type has none
    if get_origin(kind) is dict or not set(allowed) <= {bool, int, float, str, NoneType}:
        return value
    if value is None and NoneType in allowed:
        return None
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) == (bool in allowed) and isinstance(value, allowed):
        return value
    names = " or ".join("null" if item is NoneType else item.__name__ for item in allowed)
    hint = "; YAML reads a number with an exponent only with a point and a sign, as 1.0e+13" if float in allowed else ""
    raise TypeError(f"{path}={value!r} is a {type(value).__name__}; it must be {names}{hint}.")


def env_settings(options: Mapping[str, Any]) -> str:
    """Return how commands set options of an environment, whole and quoted for a shell, to end an error message with.

    Hydra adds a key or replaces it where it is told ``++``, whichever the composed config asks.

    Args:
        options: by name, dotted where it is nested, as "task_kwargs.path"; values as JSON has them.
    """
    overrides = [shlex.quote(f"++env.kwargs.{name}={_hydra_value(value)}") for name, value in options.items()]
    kwargs = [shlex.quote(f"{name}={_plain_value(value)}") for name, value in options.items()]
    return f"{' '.join(overrides)} (worldmtp train), --kwargs {' '.join(kwargs)} (worldmtp envs, eval)"


_PLAIN_TEXT = re.compile(r"[A-Za-z_./][\w./:-]*", re.ASCII)
_NO_TEXTS = ("null", "true", "false", "nan", "inf")


def _hydra_value(value: Any) -> str:
    """Return a value as Hydra's grammar reads it; in quotes, backslashes count where a quote or a ${ follows."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_hydra_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_hydra_value, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN_TEXT.fullmatch(value) and value.lower() not in _NO_TEXTS:
        return value
    escaped = re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", value)
    closed = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ("\\" if found[2] else "") + found[2], escaped)
    return f'"{closed}"'


def _plain_value(value: Any) -> str:
    """Return a value as ``--kwargs`` reads it: JSON, or else text."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)
