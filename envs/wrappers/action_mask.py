"""Infos that say which tokens may come next, and an error for those that may not.

Rules that hold everywhere, one about the end, and the user's own. A forbidden action is an error and not replaced: the
agent would learn from a token that it did not choose. A policy reads the mask of the infos it was given with the
observation, and masks in the loss as it does in acting.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from jaxtyping import Bool, Int

from worldmtp.choices import env_settings
from worldmtp.envs.rows import Observation, VectorReset, VectorStep
from worldmtp.envs.text_env import TextVectorEnv, TextVectorWrapper
from worldmtp.envs.tokenizer import Tokenizer

ActionRule = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Batched observations to a mask (N, V), of booleans or of 0 and 1; non-zero is allowed."""


class VectorActionMask(TextVectorWrapper):
    """Adds ``infos["action_mask"]``, (N, V) int8; ``action_space.sample(tuple(mask))`` draws by it.

    A token is allowed where each of the rules that were asked for allows it. Rows that have ended and wait for their
    reset ignore their action, so that all is allowed there.

    Args:
        env: a ``TextGenVectorEnv``.
        rule: from observations to a mask (N, V).
        forbid_pad: whether padding may not be written.
        min_new: EOS is allowed only behind as many tokens after the prompt.
        alphabet: characters; only tokens whose text is of these, and EOS.
        forbid_eos: whether EOS may never be written, as where a turn is one token (``max_turn=1``).

    Raises:
        ValueError: if nothing is forbidden, ``min_new`` leaves no room for EOS, the alphabet leaves no token, or EOS is
            forbidden where nothing else ends a turn.
    """

    def __init__(
        self,
        env: VectorEnv,
        rule: ActionRule | None = None,
        *,
        forbid_pad: bool = True,
        min_new: int = 0,
        alphabet: str | None = None,
        forbid_eos: bool = False,
    ) -> None:
        super().__init__(env)
        max_steps, tokenizer = self.dataset.max_steps, self.tokenizer
        if not 0 <= min_new < max_steps:
            raise ValueError(f"min_new={min_new} must be in 0..{max_steps - 1}: EOS is one of the max_new tokens.")
        if rule is None and not forbid_pad and min_new == 0 and alphabet is None and not forbid_eos:
            raise ValueError("this mask allows everything; give a rule, min_new or an alphabet, or leave it out.")
        if forbid_eos and self.dataset.max_turn is None:
            raise ValueError(
                "forbid_eos=True needs max_turn, the tokens of a turn: without either of them no turn would end, and "
                f"nothing would be answered. Turns of one token: {env_settings({'max_turn': 1})}."
            )
        self._rule, self._min_new, eos_id = rule, min_new, tokenizer.eos_id
        self._everywhere = np.ones(tokenizer.vocab_size, dtype=bool)
        if alphabet is not None:
            characters = set(alphabet)
            texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
            self._everywhere = np.array([text != "" and set(text) <= characters for text in texts])
            if not self._everywhere.any():
                raise ValueError(f"alphabet={alphabet!r} leaves no token of {type(tokenizer).__name__} but EOS.")
            self._everywhere[eos_id] = True
        if forbid_pad and tokenizer.pad_id != eos_id:
            self._everywhere[tokenizer.pad_id] = False
        if forbid_eos:
            self._everywhere[eos_id] = False
        self._allowed: Bool[np.ndarray, "row vocab"] | None = None

    @property
    def everywhere(self) -> Bool[np.ndarray, " vocab"]:
        """Which tokens no rule that holds everywhere forbids, whatever the user's own and ``min_new`` say of a text."""
        return self._everywhere.copy()

    def around(self, env: TextVectorEnv) -> "VectorActionMask":
        """Return the same rules over other rows of the same tokens, such as imagined ones."""
        other = copy.copy(self)
        other.env, other._allowed = env, None
        return other

    def step(self, actions: np.ndarray) -> VectorStep:
        """Step the env; the infos have the masks of the next tokens.

        Raises:
            ValueError: if an action of a row that has not ended is forbidden.
        """
        if self._allowed is not None and np.shape(actions) == (self.num_envs,):
            check_allowed(self._allowed, np.asarray(actions), self.done, self.tokenizer)
        return super().step(actions)

    def shown(self, obs: Observation, infos: dict[str, Any]) -> VectorReset:
        """Return the infos with the masks of the next tokens.

        Raises:
            ValueError: if the user's rule returns no mask, or nothing is allowed in a row.
        """
        self._allowed = allowed = self._masks(obs)
        every_row = np.ones(self.num_envs, dtype=bool)
        return obs, infos | {"action_mask": allowed.astype(np.int8), "_action_mask": every_row}

    def _masks(self, obs: Observation) -> Bool[np.ndarray, "row vocab"]:
        written = (obs["length"] - obs["prompt_length"])[:, 0]
        mask = np.tile(self._everywhere, (len(written), 1))
        mask[written < self._min_new, self.tokenizer.eos_id] = False
        if self._rule is not None:
            mask &= _checked(self._rule(obs), mask.shape)
        mask[self.done] = True
        stuck = np.flatnonzero(~mask.any(axis=1))
        if len(stuck):
            raise ValueError(f"the rules allow no token in rows {stuck.tolist()}; let them allow one, at least.")
        return mask


def _checked(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != shape or mask.dtype not in (np.bool_, np.int8):
        raise ValueError(
            f"the rule returned {mask.dtype} of shape {mask.shape}; expected bool or int8 of shape {shape}, one entry "
            "a row and token."
        )
    return mask.astype(bool)


def masks_around(real: VectorEnv) -> list[VectorActionMask]:
    """Return the action masks around rows, the outermost first."""
    masks = []
    while isinstance(real, VectorWrapper):
        if isinstance(real, VectorActionMask):
            masks.append(real)
        real = real.env
    return masks


def same_masks(real: VectorEnv, rows: TextVectorEnv) -> TextVectorEnv:
    """Return rows in the action masks that are around ``real``; its other wrappers are left out."""
    for mask in reversed(masks_around(real)):
        rows = mask.around(rows)
    return rows


def check_allowed(
    allowed: Bool[np.ndarray, "row vocab"],
    actions: Int[np.ndarray, " row"],
    waiting: Bool[np.ndarray, " row"],
    tokenizer: Tokenizer,
) -> None:
    """Raise ValueError if an action of a row that runs is forbidden; what is no token is the env's to refuse."""
    for row in np.flatnonzero(~waiting).tolist():
        action = int(actions[row])
        if 0 <= action < allowed.shape[1] and not allowed[row, action]:
            names = {tokenizer.eos_id: "EOS", tokenizer.pad_id: "padding"}
            raise ValueError(
                f"action {action} ({names.get(action, repr(tokenizer.decode([action])))}) of row {row} is forbidden; "
                f"{int(allowed[row].sum())} of {allowed.shape[1]} tokens are allowed there. Choose by "
                "infos['action_mask'], for example with action_space.sample(mask)."
            )
