"""Who acts in a text environment: the trunk with its cache, or a world model's own logits.

A policy sees observations and infos as the environment returns them and answers with one token a row and its
log-probability, exactly as sampled.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding import DecodingSession
from worldmtp.dynamics.rollout import draw
from worldmtp.model import MTPModel


@dataclass(frozen=True)
class ActedStep:
    """One decision of every row."""

    actions: Int[Tensor, " row"]
    logprobs: Float[Tensor, " row"]
    entropies: Float[Tensor, " row"]


@runtime_checkable
class ActingPolicy(Protocol):
    """What a rollout needs of a policy."""

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """One token a row; the most likely one where there is no generator."""
        ...


def sample_step(logits: Float[Tensor, "row vocab"], temperature: float, generator: torch.Generator | None) -> ActedStep:
    """Draw from softmax(logits / temperature), or take the most likely token where there is no generator.

    Raises:
        FloatingPointError: a row's logits are NaN or all infinite.
    """
    log_policy = (logits / temperature).log_softmax(dim=-1)
    if bool(torch.isnan(log_policy).any()):
        raise FloatingPointError("the policy's logits are not finite while acting; its weights have overflowed.")
    actions = draw(log_policy, generator)
    return ActedStep(
        actions=actions,
        logprobs=log_policy.gather(1, actions[:, None])[:, 0],
        entropies=torch.special.entr(log_policy.exp()).sum(dim=-1),
    )


class TrunkPolicy:
    """The language model itself, decoding with a cache.

    As long as the environment appends just the tokens this policy chose, each act is one cached step. Where it wrote
    tokens of its own, or reset a row, the session is filled anew from the observation.
    """

    def __init__(self, model: MTPModel, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be positive; for greedy acting pass no generator.")
        self._session = DecodingSession(model)
        self._temperature = temperature
        self._device = model.device
        self._tokens = np.zeros((0, 0), dtype=np.int64)
        self._lengths = np.zeros(0, dtype=np.int64)
        self._ahead = np.zeros(0, dtype=bool)  # rows that stood still while the session, which steps all, went on
        self._chosen: Tensor | None = None

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """One token a row."""
        lengths = obs["length"][:, 0]
        if self._chosen is not None and self._only_grew_by_choice(obs, lengths):
            logits = self._session.step(self._chosen)
        else:
            width = int(lengths.max())
            input_ids = torch.from_numpy(obs["tokens"][:, :width]).to(self._device)
            mask = torch.arange(width)[None] < torch.from_numpy(lengths)[:, None]
            logits = self._session.prefill(input_ids, mask.to(self._device))
            self._ahead = np.zeros(len(lengths), dtype=bool)
        step = sample_step(logits, self._temperature, generator)
        self._tokens, self._lengths, self._chosen = obs["tokens"].copy(), lengths.copy(), step.actions
        return step

    def _only_grew_by_choice(self, obs: dict[str, np.ndarray], lengths: np.ndarray) -> bool:
        """Whether every row that moved grew by exactly the token chosen; rows that ended stand still for good."""
        assert self._chosen is not None
        if obs["tokens"].shape != self._tokens.shape:
            return False
        grown = lengths - self._lengths
        moved = grown == 1
        self._ahead |= grown == 0
        rows = np.nonzero(moved)[0]
        written = obs["tokens"][rows, self._lengths[rows]]
        before = np.arange(self._tokens.shape[1]) < self._lengths[:, None]
        return bool(
            moved.any()
            and ((grown == 0) | moved).all()
            and not (moved & self._ahead).any()
            and (written == self._chosen.cpu().numpy()[rows]).all()
            and (obs["tokens"] == self._tokens)[before].all()
        )


class LatentPolicy:
    """A world model's own policy logits, read from ``infos["policy_logits"]`` of an ImaginedVectorEnv."""

    def __init__(self, temperature: float = 1.0) -> None:
        self._temperature = temperature

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """One token a row.

        Raises:
            KeyError: the environment imagines nothing.
        """
        if "policy_logits" not in infos:
            raise KeyError(
                "infos has no 'policy_logits': LatentPolicy acts in an ImaginedVectorEnv; use TrunkPolicy elsewhere."
            )
        return sample_step(torch.from_numpy(infos["policy_logits"]), self._temperature, generator)
