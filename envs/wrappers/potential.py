"""Potentials of unfinished texts."""

import difflib
from collections.abc import Callable

from worldmtp.envs.task import Example

Potential = Callable[[Example, str], float]
"""How promising a text is that stands behind an example's prompt, the empty one included."""


def prefix_match(example: Example, text: str) -> float:
    """Share of the oracle's answer that the text begins with, in [0, 1].

    Raises:
        ValueError: if the example has no answer.
    """
    if not example.answer:
        raise ValueError(f"prefix_match needs an answer to {example.prompt!r}; give a potential of your own.")
    matched = 0
    for ours, oracles in zip(text, example.answer, strict=False):  # the shorter ends the match
        if ours != oracles:
            break
        matched += 1
    return matched / len(example.answer)


_POTENTIALS: dict[str, Potential] = {"prefix_match": prefix_match}


def make_potential(potential: str | Potential) -> Potential:
    """The potential of that name; a function is its own.

    Raises:
        ValueError: if there is none of that name.
    """
    if not isinstance(potential, str):
        return potential
    if potential not in _POTENTIALS:
        hint = difflib.get_close_matches(potential, _POTENTIALS, n=1)
        raise ValueError(
            f"potential={potential!r} is unknown; expected one of {sorted(_POTENTIALS)} or a function of an Example "
            "and a text" + (f", did you mean {hint[0]!r}?" if hint else ".")
        )
    return _POTENTIALS[potential]
