"""The text environment as a world model imagines it: same spaces, same loop, nothing real is asked.

Transition, reward and end come from a ``WorldModel``; its latent states never leave this module. ``infos`` of ``reset``
and ``step`` bring what a policy needs to act without the trunk:

* ``policy_logits`` (N, V), ``values`` (N,) and ``continuations`` (N,), all float32 with their masks: of the rows still
  running, and, for the last two, of those that ended with this step too (to bootstrap). Elsewhere 0.
* of rows that ended with this step, ``final_info``: ``score`` (float64, the imagined return), ``num_tokens`` (int64,
  imagined tokens) and ``reason`` ("eos", "turn", "continuation", "horizon" or "budget").

In a conversation the policy's turn ends with EOS or after so many tokens, and the world model does not know the reply.
Give ``turn_room``, and a row is truncated there, for the reason "turn", to be bootstrapped by its value; without it the
text is one answer, which EOS ends.

Rows end for good, as in autoreset mode "disabled": latent states cannot be spliced, so ``reset`` begins all rows anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Int, Int64

from worldmtp.dynamics import LatentState, Prediction, WorldModel
from worldmtp.envs.options import refusal_changes_nothing
from worldmtp.envs.rows import TextRows, VectorReset, VectorStep, batch_infos, check_actions, observation_space

Prefixes = Sequence[Sequence[int]] | Int64[np.ndarray, "env length"]


class ImaginedVectorEnv(VectorEnv):
    """One row for each prefix.

    Args:
        world_model: whose steps are imagined; it must be action-conditional.
        prefix_ids: token ids of the roots: prompts, or prompts with the beginning of a response, without padding.
        prompt_length: tokens of each prefix that are its prompt; None is all of them.
        pad_id: fills observations on the right.
        eos_id: ends a text.
        vocab_size: actions are 0 .. vocab_size - 1.
        max_prompt: as in the real environment.
        max_new: as in the real environment: tokens of a response, those of the prefix included.
        horizon: steps after which a row is truncated; None is the least that the budget and the model allow.
        continuation_threshold: a step whose predicted probability of going on is below it ends the text; with None,
            only EOS does.
        device: where the prefixes are encoded.
        turn_room: tokens that the policy's turn may still take in each row of a conversation; None where EOS ends the
            text.

    Raises:
        TypeError: if the model cannot be stepped by an action.
        ValueError: if a prefix or the horizon does not fit.
    """

    def __init__(
        self,
        world_model: WorldModel,
        prefix_ids: Prefixes,
        prompt_length: Sequence[int] | Int64[np.ndarray, " env"] | None = None,
        *,
        pad_id: int,
        eos_id: int,
        vocab_size: int,
        max_prompt: int,
        max_new: int,
        horizon: int | None = None,
        continuation_threshold: float | None = 0.5,
        device: torch.device | str = "cpu",
        turn_room: Sequence[int] | Int64[np.ndarray, " env"] | None = None,
    ) -> None:
        if not world_model.action_conditional:
            raise TypeError(
                f"{type(world_model).__name__} is not action-conditional: its predictions do not depend on the tokens "
                "chosen, so it cannot stand for the environment; use a back-end whose heads are chained."
            )
        limit = world_model.max_horizon
        if horizon is not None and (horizon < 1 or (limit is not None and horizon > limit)):
            raise ValueError(
                f"horizon={horizon} must be at least 1, and at most {limit} with {type(world_model).__name__}."
            )
        if continuation_threshold is not None and not 0.0 <= continuation_threshold <= 1.0:
            raise ValueError(f"continuation_threshold={continuation_threshold} must be a probability, or None.")
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}
        self.world_model = world_model
        self.pad_id, self.eos_id, self.vocab_size = pad_id, eos_id, vocab_size
        self.max_prompt, self.max_new = max_prompt, max_new
        self.horizon = horizon if horizon is not None else min(max_new, max_new if limit is None else limit)
        self.continuation_threshold = continuation_threshold
        self.device = torch.device(device)
        self._root = self._rooted(prefix_ids, prompt_length)
        self.num_envs = len(self._root.done)
        self._turn_room = self._checked_room(turn_room)
        self.single_observation_space: spaces.Space[Any] = observation_space(max_prompt + max_new, vocab_size)
        self.single_action_space: spaces.Space[Any] = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rows: TextRows | None = None

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Encode the prefixes; options ``prefix_ids`` and ``prompt_length`` give new ones, as many as there are rows.

        With them goes ``turn_room`` in a conversation.

        Raises:
            ValueError: if an option is unknown or the prefixes do not fit.
        """
        with refusal_changes_nothing(self):
            super().reset(seed=seed)
            asked = dict(options or {})
            unknown = sorted(set(asked) - {"prefix_ids", "prompt_length", "turn_room"})
            if unknown:
                raise ValueError(
                    f"reset options {unknown} are unknown; expected 'prefix_ids', 'prompt_length' and 'turn_room'."
                )
            if "prefix_ids" in asked:
                root = self._rooted(asked["prefix_ids"], asked.get("prompt_length"))
                if len(root.done) != self.num_envs:
                    raise ValueError(f"{len(root.done)} prefixes for {self.num_envs} rows; give one a row.")
                if self._turn_room is not None and "turn_room" not in asked:
                    raise ValueError("new prefixes of a conversation need their turn_room, which has not been given.")
                self._root, self._turn_room = root, self._checked_room(asked.get("turn_room"))
        self._rows = self._root.copy()
        self._latent, prediction = self._encode(self._root)
        self._latent_rows = np.arange(self.num_envs)
        self._num_steps = 0
        self._returns = np.zeros(self.num_envs)
        return self._rows.observation(), self._infos(self._latent_rows, self._latent_rows, prediction)

    @torch.no_grad()
    def step(self, actions: Int[np.ndarray, " env"]) -> VectorStep:
        """One imagined token in every row that has not ended; the others ignore theirs, and earn 0.

        Raises:
            ValueError: if the actions have the wrong shape, or one for a running row is not in the vocabulary.
            ResetNeeded: before the first reset.
        """
        rows = self._rows
        if rows is None:
            raise ResetNeeded("call reset before step.")
        stepped, live = self._latent_rows, ~rows.done
        actions = check_actions(actions, live, self.vocab_size)
        rewards, continuations = np.zeros(self.num_envs), np.ones(self.num_envs)
        if not len(stepped):
            no = np.zeros(self.num_envs, dtype=bool)
            return rows.observation(), rewards, no, no.copy(), {}
        chosen = torch.as_tensor(actions[stepped], device=self.device)
        self._latent = self.world_model.step(self._latent, chosen)
        prediction = self.world_model.predict(self._latent)
        rows.append(stepped, actions[stepped])
        rewards[stepped] = _array(prediction.reward)
        continuations[stepped] = _array(prediction.continuation)
        self._num_steps += 1
        self._returns += rewards

        eos, out_of_budget = rows.ends(live, actions, self.eos_id, self.max_new)
        imagined_end = np.zeros(self.num_envs, dtype=bool)
        if self.continuation_threshold is not None:
            imagined_end = live & (continuations < self.continuation_threshold)
        turn_over = np.zeros(self.num_envs, dtype=bool)
        if self._turn_room is not None:
            turn_over = live & (eos | (self._num_steps >= self._turn_room))
            eos = np.zeros(self.num_envs, dtype=bool)
        imagined_end &= ~turn_over
        terminated = eos | imagined_end
        truncated = live & ~terminated & (turn_over | out_of_budget | (self._num_steps >= self.horizon))
        ended = terminated | truncated
        rows.done |= ended

        going_on = ~ended[stepped]
        infos = self._infos(stepped, stepped[going_on], prediction)
        if ended.any():
            ended_rows = np.flatnonzero(ended)
            causes = np.select(
                [eos, turn_over, imagined_end, out_of_budget], ["eos", "turn", "continuation", "budget"], "horizon"
            )
            records = [
                {"score": float(self._returns[row]), "num_tokens": self._num_steps, "reason": str(causes[row])}
                for row in ended_rows
            ]
            infos["final_info"], infos["_final_info"] = batch_infos(records, ended_rows, self.num_envs), ended.copy()
            self._latent_rows = stepped[going_on]
            if going_on.any():
                self._latent = self._latent.select(torch.as_tensor(np.flatnonzero(going_on), device=self.device))
        return rows.observation(), rewards, terminated, truncated, infos

    def _rooted(self, prefix_ids: Prefixes, prompt_length: Sequence[int] | np.ndarray | None) -> TextRows:
        prefixes = [np.asarray(prefix, dtype=np.int64) for prefix in prefix_ids]
        lengths = np.array([len(prefix) for prefix in prefixes], dtype=np.int64)
        prompts = lengths.copy() if prompt_length is None else np.asarray(prompt_length, dtype=np.int64)
        if not len(prefixes) or prompts.shape != lengths.shape:
            raise ValueError(
                f"expected prefixes and a prompt length for each, got {len(prefixes)} and {prompts.shape}."
            )
        if (prompts < 1).any() or (prompts > np.minimum(lengths, self.max_prompt)).any():
            raise ValueError(
                f"prompt lengths {prompts.tolist()} must be at least 1 and at most the prefixes' lengths "
                f"{lengths.tolist()} and max_prompt={self.max_prompt}."
            )
        if (lengths - prompts >= self.max_new).any():
            raise ValueError(f"a prefix has a response of max_new={self.max_new} tokens or more: it has ended already.")
        root = TextRows(len(prefixes), self.max_prompt + self.max_new, self.pad_id)
        root.prompt_length = prompts
        for row, prefix in enumerate(prefixes):
            root.write(row, prefix)
        return root

    def _checked_room(self, room: Sequence[int] | np.ndarray | None) -> np.ndarray | None:
        if room is None:
            return None
        given = np.asarray(room, dtype=np.int64)
        if given.shape != (self.num_envs,) or (given < 1).any():
            raise ValueError(
                f"turn_room={given.tolist()} must be at least 1 for each of {self.num_envs} rows: where the turn is "
                "over, the world speaks."
            )
        return given

    @torch.no_grad()
    def _encode(self, root: TextRows) -> tuple[LatentState, Prediction]:
        width = int(root.length.max())
        input_ids = torch.as_tensor(root.tokens[:, :width].copy(), device=self.device)
        attention_mask = torch.as_tensor(np.arange(width) < root.length[:, None], device=self.device)
        rows = torch.arange(len(root.done), device=self.device)
        positions = torch.as_tensor(root.length - 1, device=self.device)
        latent = self.world_model.encode(input_ids, attention_mask, rows, positions)
        return latent, self.world_model.predict(latent)

    def _infos(self, predicted: np.ndarray, running: np.ndarray, prediction: Prediction) -> dict[str, Any]:
        """``predicted`` rows have a prediction, of which those ``running`` go on."""
        if prediction.logits is None:
            raise ValueError(f"{type(self.world_model).__name__}.predict returned no logits; they are the policy here.")
        infos: dict[str, Any] = {}
        goes_on = np.isin(predicted, running)
        columns = {
            "policy_logits": (running, _array(prediction.logits)[goes_on]),
            "values": (predicted, _array(prediction.value)),
            "continuations": (predicted, _array(prediction.continuation)),
        }
        for name, (rows, values) in columns.items():
            infos[name] = np.zeros((self.num_envs, *values.shape[1:]), dtype=np.float32)
            infos[name][rows] = values
            infos[f"_{name}"] = np.isin(np.arange(self.num_envs), rows)
        return infos


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
