"""A policy in a conversation: what the world wrote is on the length axis only, log-probabilities are the trunk's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.ppo import gather_states
from worldmtp.agents.rollout import action_mask, collect_rollout, state_index
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.model import MTPModel
from worldmtp.model.trunk import last_hidden_states


class Echo:
    """Repeats what is said behind "=" and pays a tenth of its letters; two turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._num_turns = 0
        return "abcd"[seed % 4] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._num_turns += 1
        return "=" + text, len(text) / 10, self._num_turns == 2, False, {}


@pytest.fixture
def echo_env() -> Callable[..., TextGenVectorEnv]:
    return lambda num_envs, max_turn=2: TextGenVectorEnv(
        num_envs,
        autoreset_mode="disabled",
        task=WorldTask(Echo, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=2,
        max_new=12,
        max_turn=max_turn,
        pool_size=8,
    )


@pytest.mark.parametrize("max_turn", [1, 2])
def test_tokens_a_forward_are_logged_where_there_was_a_round(
    max_turn: int, echo_env: Callable[..., TextGenVectorEnv], tiny_model: Callable[..., MTPModel]
) -> None:
    """A turn of one token comes from the forward that reads the prompt or the reply: no draft is asked for."""
    rollout = RolloutConfig(num_iterations=1, num_prompts=2, group_size=2, draft="mtp")
    how = PPOConfig(), WorldModelConfig(), ImaginationConfig(use="off")
    env = echo_env(4, max_turn)
    env.reset(seed=0)
    metrics, _ = ImaginationTrainer(tiny_model(), env, rollout, *how, seed=0).step()
    assert ("rollout/tokens_per_forward" in metrics) == (max_turn == 2)
    assert {tag: value for tag, value in metrics.items() if not math.isfinite(value)} == {}


@pytest.mark.parametrize("draft", ["none", "mtp"])
def test_a_conversation_is_recorded_as_it_was(
    draft: str, echo_env: Callable[[int], TextGenVectorEnv], tiny_model: Callable[..., MTPModel]
) -> None:
    env, model = echo_env(6), tiny_model().double()
    env.reset(seed=0)
    acted: dict[int, np.ndarray] = {}
    step = env.step

    def watched(actions: np.ndarray) -> Any:
        returned = step(actions)
        for row in np.flatnonzero(returned[4].get("_final_info", [])):
            acted[int(row)] = returned[4]["final_info"]["acted"][row]
        return returned

    env.step = watched  # type: ignore[method-assign]
    policy = TrunkPolicy(model, 1.0, draft=draft)
    rollout = collect_rollout(env, policy, torch.Generator().manual_seed(0), {})
    written = action_mask(rollout)
    assert (written.numpy() == np.stack([acted[row] for row in range(6)])).all()
    # each turn is of one or two tokens, and the world wrote "=" and the letters of the turn behind it
    for row in range(6):
        text = rollout.input_ids[row, rollout.prompt_length[row] :].tolist()
        spoken = written[row, rollout.prompt_length[row] :].tolist()
        first = text[: spoken.index(False)]
        letters = [token for token in first if token != 1]
        assert text[len(first) :][: 1 + len(letters)] == [6, *letters]
    assert rollout.terminated.any(1).all()
    # log-probabilities are those of one forward over the finished text, at the actions
    with torch.no_grad():
        hidden = last_hidden_states(model.trunk, rollout.input_ids, rollout.attention_mask)
        states = gather_states(hidden, state_index(rollout)[:, :-1])
        log_policy = model.logits_of(states).log_softmax(dim=-1)
    expected = log_policy.gather(2, rollout.actions[..., None])[..., 0]
    mask = rollout.step_mask
    torch.testing.assert_close(rollout.logprobs[mask].double(), expected[mask], rtol=0, atol=1e-6)
