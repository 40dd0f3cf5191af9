"""Names from a closed set: an unknown one is refused and the nearest is suggested."""

from collections.abc import Iterable
from difflib import get_close_matches


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: ``value`` is not among ``choices``; the message names them, and the nearest where one is near.
    """
    known = list(choices)
    if value in known:
        return
    nearest = get_close_matches(str(value), known, n=1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{what}={value!r} is unknown;{hint} choose from {known}.")
