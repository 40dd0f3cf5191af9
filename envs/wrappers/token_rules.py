"""Which tokens may come next: rules that hold everywhere, one about the end, and the user's own."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from worldmtp.envs.problem import TextProblem

ActionRule = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Batched observations to a mask (N, V), of booleans or of 0 and 1; non-zero is allowed."""


class TokenRules:
    """All rules that were asked for, at once: a token is allowed where each of them allows it.

    Args:
        problem: whose tokens they are.
        rule: the user's.
        forbid_pad: whether padding may not be written.
        min_new: EOS is allowed only behind as many tokens after the prompt.
        alphabet: characters; only tokens whose text is of these, and EOS.

    Raises:
        ValueError: if nothing is forbidden, ``min_new`` leaves no room for EOS, or the alphabet leaves no token.
    """

    def __init__(
        self, problem: TextProblem, rule: ActionRule | None, forbid_pad: bool, min_new: int, alphabet: str | None
    ) -> None:
        if not 0 <= min_new < problem.max_steps:
            raise ValueError(
                f"min_new={min_new} must be in 0..{problem.max_steps - 1}: EOS is one of the max_new tokens."
            )
        if rule is None and not forbid_pad and min_new == 0 and alphabet is None:
            raise ValueError("this mask allows everything; give a rule, min_new or an alphabet, or leave it out.")
        tokenizer = problem.tokenizer
        self._rule, self._min_new, self._eos_id = rule, min_new, tokenizer.eos_id
        self._everywhere = np.ones(tokenizer.vocab_size, dtype=bool)
        if alphabet is not None:
            characters = set(alphabet)
            texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
            self._everywhere = np.array([text != "" and set(text) <= characters for text in texts])
            if not self._everywhere.any():
                raise ValueError(f"alphabet={alphabet!r} leaves no token of {type(tokenizer).__name__} but EOS.")
            self._everywhere[self._eos_id] = True
        if forbid_pad and tokenizer.pad_id != self._eos_id:
            self._everywhere[tokenizer.pad_id] = False

    def allowed(
        self, obs: Mapping[str, np.ndarray], waiting: Bool[np.ndarray, " row"]
    ) -> Bool[np.ndarray, "row vocab"]:
        """What may be written next in each row: anything in rows that wait for their reset and will ignore it.

        Raises:
            ValueError: if the user's rule returns no such mask, or nothing is allowed in a row.
        """
        written = (obs["length"] - obs["prompt_length"])[:, 0]
        mask = np.tile(self._everywhere, (len(written), 1))
        mask[written < self._min_new, self._eos_id] = False
        if self._rule is not None:
            mask &= self._checked(self._rule(obs), mask.shape)
        mask[waiting] = True
        stuck = np.flatnonzero(~mask.any(axis=1))
        if len(stuck):
            raise ValueError(f"the rules allow no token in rows {stuck.tolist()}; let them allow EOS, at least.")
        return mask

    def _checked(self, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
        mask = np.asarray(mask)
        if mask.shape != shape or mask.dtype not in (np.bool_, np.int8):
            raise ValueError(
                f"the rule returned {mask.dtype} of shape {mask.shape}; expected bool or int8 of shape {shape}, "
                "one entry a row and token."
            )
        return mask.astype(bool)
