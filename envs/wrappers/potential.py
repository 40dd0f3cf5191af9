"""Potentials of unfinished texts."""

from collections.abc import Callable

from worldmtp.choices import did_you_mean
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
        raise ValueError(
            f"potential={potential!r} is unknown; expected one of {sorted(_POTENTIALS)} or a function of an Example "
            f"and a text{did_you_mean(potential, _POTENTIALS)}"
        )
    return _POTENTIALS[potential]
