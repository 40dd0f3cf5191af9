"""What the agent's tests share: tiny tasks, environments and models, and rollouts laid out by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import Prediction, StateTable
from worldmtp.dynamics.exact import Episodes
from worldmtp.envs import CharTokenizer, Example, Score, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

ALPHABET = "abcd="


class Steps:
    """The word "a" is answered "=a" and pays a half, others "="; two of them end it, or the third turn."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._turn = self._right = 0
        return "ab"[seed % 2] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        right = text == "a"
        self._right += right
        over = self._right == 2
        return "=a" if right else "=", right / 2, over, self._turn == 3 and not over, {}


def make_steps_env(num_envs: int, **fields: Any) -> TextGenVectorEnv:
    fields = {"max_prompt": 2, "max_new": 9, "max_turn": 1, "pool_size": 8} | fields
    return TextGenVectorEnv(num_envs, task=WorldTask(Steps, num_seeds=40), tokenizer=CharTokenizer(ALPHABET), **fields)


class FirstLetter:
    """Prompt: two letters and "=". The answer is the first of them, then EOS; exactly that is paid."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        letters = "".join(rng.choice(list("abcd"), size=2))
        return Example(prompt=f"{letters}=", answer=letters[0])

    def score(self, example: Example, text: str, ids: np.ndarray) -> Score:
        right = text == example.answer
        return Score(value=float(right), components={}, reason="ok", exact=right)


def make_text_env(num_envs: int) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        autoreset_mode="disabled",
        task=FirstLetter(),
        tokenizer={"kind": "char", "alphabet": ALPHABET},
        max_prompt=3,
        max_new=3,
        pool_size=8,
        pool_seed=1,
        heldout_fraction=0.25,
    )


def make_tiny_model(depth: int = 3, seed: int = 0) -> MTPModel:
    config = LlamaConfig(
        vocab_size=2 + len(ALPHABET),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        trunk = LlamaForCausalLM(config)
    heads = MTPConfig(depth=depth, value_range=(0.0, 1.0), reward_range=(0.0, 1.0), num_value_bins=11)
    return MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture
def text_env() -> Callable[[int], TextGenVectorEnv]:
    return make_text_env


@pytest.fixture
def steps_env() -> Callable[..., TextGenVectorEnv]:
    return make_steps_env


@pytest.fixture
def tiny_model() -> Callable[..., MTPModel]:
    return make_tiny_model


def make_rollout(rows: Sequence[dict[str, Any]], steps: int, length: int) -> Rollout:
    """Rollouts laid out by hand: each row its ``prompt``, ``actions``, ``rewards`` and ``end``.

    Optional: ``wrote[t]``, tokens of the environment's own after action t; ``logprobs``; ``group``.
    """
    shape = (len(rows), steps)
    input_ids = torch.zeros((len(rows), length), dtype=torch.long)
    attention_mask, step_mask = torch.zeros_like(input_ids, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    terminated, truncated = step_mask.clone(), step_mask.clone()
    action_index, actions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    rewards, logprobs = torch.zeros(shape), torch.zeros(shape)
    for b, row in enumerate(rows):
        text, count = list(row["prompt"]), len(row["actions"])
        for t, action in enumerate(row["actions"]):
            action_index[b, t], actions[b, t] = len(text), action
            text += [action, *row.get("wrote", [[]] * count)[t]]
        step_mask[b, :count] = True
        rewards[b, :count] = torch.tensor(row["rewards"])
        logprobs[b, :count] = torch.tensor(row.get("logprobs", [-1.0] * count))
        (terminated if row["end"] == "terminated" else truncated)[b, count - 1] = True
        input_ids[b, : len(text)], attention_mask[b, : len(text)] = torch.tensor(text), True
    return Rollout(
        input_ids=input_ids,
        attention_mask=attention_mask,
        prompt_length=torch.tensor([len(row["prompt"]) for row in rows]),
        action_index=action_index,
        actions=actions,
        step_mask=step_mask,
        logprobs=logprobs,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        group=torch.tensor([row.get("group", b) for b, row in enumerate(rows)]),
        exact=torch.zeros(len(rows), dtype=torch.bool),
    )


class ReplyingEnv:
    """Text rows that take actions until token 1, or ``max_new`` of them; after each but the last, ``reply`` writes.

    ``pay`` gets the text after the action (replies included) and the action.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        reply: Callable[[int], list[int]] = lambda action: [],
        pay: Callable[[list[int], int], float] = lambda text, action: 0.0,
        length: int = 16,
    ) -> None:
        self.num_envs, self.max_new, self._length = len(prompts), max_new, length
        self.metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}
        self._prompts, self._reply, self._pay = prompts, reply, pay

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        self._texts = [list(prompt) for prompt in self._prompts]
        self._taken = [0] * self.num_envs
        self._done = np.zeros(self.num_envs, dtype=bool)
        return self._observation(), {}

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        for row in np.flatnonzero(~self._done):
            action = int(actions[row])
            self._texts[row].append(action)
            self._taken[row] += 1
            terminated[row] = action == 1
            truncated[row] = action != 1 and self._taken[row] == self.max_new
            if not (terminated[row] or truncated[row]):
                self._texts[row] += self._reply(action)
            rewards[row] = self._pay(self._texts[row], action)
        self._done |= terminated | truncated
        return self._observation(), rewards, terminated, truncated, {"final_info": {}}

    def _observation(self) -> dict[str, np.ndarray]:
        tokens = np.zeros((self.num_envs, self._length), dtype=np.int64)
        for row, text in enumerate(self._texts):
            tokens[row, : len(text)] = text
        return {
            "tokens": tokens,
            "length": np.array([[len(text)] for text in self._texts]),
            "prompt_length": np.array([[len(prompt)] for prompt in self._prompts]),
        }


@dataclass(frozen=True)
class TotalState(StateTable):
    """A text by the sum of its tokens and its last token."""

    total: torch.Tensor
    last: torch.Tensor

    @property
    def latent(self) -> torch.Tensor:
        return torch.stack([self.total, self.last], dim=1).float()


class TotalWorld:
    """A world whose answers can be worked in the head; a token is paid a tenth of its id.

    It continues with probability 1/2, a text is worth its total, and the next token is (total mod 7), of logit 5.
    """

    action_conditional = True
    max_horizon = None
    models_replies = False

    def encode(
        self,
        input_ids: Any,
        attention_mask: Any,
        root_rows: Any = None,
        root_positions: Any = None,
        features: Any = None,
    ) -> Any:
        seen = torch.arange(input_ids.shape[1]) <= root_positions[:, None]
        return TotalState((input_ids[root_rows] * seen).sum(1), input_ids[root_rows, root_positions])

    def step(self, state: TotalState, actions: torch.Tensor) -> TotalState:
        return TotalState(state.total + actions, actions)

    def predict(self, state: TotalState, with_logits: bool = True) -> Prediction:
        logits = 5.0 * torch.nn.functional.one_hot(state.total % 7, 7).float()
        half = torch.full(state.total.shape, 0.5)
        return Prediction(logits if with_logits else None, state.last / 10, half, state.total.float())


def make_rollout_of_episodes(episodes: Episodes, logprobs: torch.Tensor) -> Rollout:
    """All episodes of a token MDP, answers to a prompt of no tokens."""
    mask, nothing = episodes.step_mask, torch.zeros(len(episodes.actions), dtype=torch.long)
    steps = torch.arange(mask.shape[1]).expand(mask.shape)
    ends = steps == mask.sum(dim=1, keepdim=True) - 1
    return Rollout(
        input_ids=episodes.actions,
        attention_mask=mask,
        prompt_length=nothing,
        action_index=torch.where(mask, steps, 0),
        actions=episodes.actions,
        step_mask=mask,
        logprobs=logprobs,
        rewards=episodes.rewards,
        terminated=ends,
        truncated=torch.zeros_like(ends),
        group=nothing,
        exact=nothing.bool(),
    )


@pytest.fixture
def rollout_of_episodes() -> Callable[..., Rollout]:
    return make_rollout_of_episodes


@pytest.fixture
def hand_rollout() -> Callable[..., Rollout]:
    return make_rollout


@pytest.fixture
def replying_env() -> type[ReplyingEnv]:
    return ReplyingEnv


@pytest.fixture
def total_world() -> TotalWorld:
    return TotalWorld()
