"""Potentials of unfinished texts, and the examples they are told of."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from worldmtp.envs.problem import TextProblem
from worldmtp.envs.splits import split_of
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


class ExampleFinder:
    """Examples of a problem by their key, which is what infos tell of them."""

    def __init__(self, problem: TextProblem) -> None:
        self._problem = problem
        self._pools: dict[str, dict[str, Example]] = {}
        self._given: dict[str, Example] = {}

    def note(self, options: Mapping[str, Any] | None) -> None:
        """Remember the Examples that a reset is given; those of earlier resets are over or in the pool."""
        prompts = (options or {}).get("prompts") or ()
        self._given |= {prompt.key: prompt for prompt in prompts if isinstance(prompt, Example)}

    def find(self, key: str) -> Example:
        """The example.

        Raises:
            ValueError: if it is neither in the pool of its split nor was given at a reset.
        """
        if key in self._given:
            return self._given[key]
        split = split_of(key, self._problem.heldout_fraction)
        if split not in self._pools:
            self._pools[split] = {example.key: example for example in self._problem.pool(split).examples}
        if key not in self._pools[split]:
            raise ValueError(
                f"no example with key {key!r} is in the pool of {split!r} or was given through this wrapper's reset; "
                "reset the wrapper, not the env under it."
            )
        return self._pools[split][key]
