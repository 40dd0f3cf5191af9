"""The dataclasses that travel between rooms. Axis order and time convention are written here, once.

Two axes index an episode:

* ``length`` runs over tokens of the text, prompt first, right-padded: ``input_ids[:, i]``;
* ``time`` runs over the agent's own decisions: ``actions[:, t]`` is the token chosen in state ``s_t``, the prefix
  ``input_ids[:, :action_index[:, t]]``. Hence ``input_ids[b, action_index[b, t]] == actions[b, t]`` and the trunk's
  hidden state that chose it stands at ``action_index[b, t] - 1``.

Tokens that the environment writes are on the ``length`` axis only. ``rewards[:, t]``, ``terminated[:, t]`` and
``truncated[:, t]`` belong to ``actions[:, t]`` (Gymnasium); ``values`` has one entry more, the last the bootstrap.

         length   0    1    2    3    4    5
         text     p    p    p    a    a    EOS
         time                    0    1    2
         reward                  0    0    1        <- of the action above it
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_Batch = TypeVar("_Batch", bound="TensorBatch")


@dataclass(frozen=True)
class TensorBatch:
    """Tensors that share their first axis; indexing and moving act on all of them."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def select(self: _Batch, rows: Tensor) -> _Batch:
        """Rows, in the order asked for, of every field."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self: _Batch, device: torch.device | str) -> _Batch:
        """The same batch on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Rollout(TensorBatch):
    """Episodes of one policy version, each token id stored once; memory is O(length) per episode.

    ``logprobs`` are log pi_old of every action exactly as it was sampled. ``group`` numbers the prompt an episode
    answers, so that episodes of one group share their prompt. ``terminated`` and ``truncated`` are never both true.
    ``allowed[:, t]`` are the tokens that the environment's action mask let the policy choose from; where there is no
    mask, which is the default, its last axis is empty.
    """

    input_ids: Int[Tensor, "batch length"]
    attention_mask: Bool[Tensor, "batch length"]
    prompt_length: Int[Tensor, " batch"]
    action_index: Int[Tensor, "batch time"]
    actions: Int[Tensor, "batch time"]
    step_mask: Bool[Tensor, "batch time"]
    logprobs: Float[Tensor, "batch time"]
    rewards: Float[Tensor, "batch time"]
    terminated: Bool[Tensor, "batch time"]
    truncated: Bool[Tensor, "batch time"]
    group: Int[Tensor, " batch"]
    exact: Bool[Tensor, " batch"]
    allowed: Bool[Tensor, "batch time known_vocab"] | None = None

    def __post_init__(self) -> None:
        if self.allowed is None:
            nothing = torch.ones((*self.actions.shape, 0), dtype=torch.bool, device=self.actions.device)
            object.__setattr__(self, "allowed", nothing)

    @property
    def is_masked(self) -> bool:
        """Whether the environment told which actions are allowed."""
        return self.allowed is not None and self.allowed.shape[-1] > 0

    @property
    def num_tokens(self) -> int:
        """Tokens the policy generated."""
        return int(self.step_mask.sum())
