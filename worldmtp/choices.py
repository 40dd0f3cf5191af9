"""Names from a closed set: an unknown one is refused, and the nearest known one is suggested."""

from collections.abc import Iterable


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
