"""One loop for the real and the imagined environment: what it records, step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from worldmtp.agents.queues import ActedStep
from worldmtp.agents.rollout import BatchedTextEnv, PhaseClock, Rollout, collect_rollout
from worldmtp.dynamics import Prediction
from worldmtp.envs import ImaginedVectorEnv, TextGenVectorEnv


class Scripted:
    """Plays back actions; log-probability of step t is -t - 1."""

    def __init__(self, script: list[list[int]]) -> None:
        self._script, self._time = script, 0

    def act(self, obs: dict[str, Any], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        actions = torch.tensor([row[min(self._time, len(row) - 1)] for row in self._script])
        self._time += 1
        return ActedStep(actions, torch.full((len(actions),), -float(self._time)))


def test_what_is_recorded_by_hand(replying_env: Any) -> None:
    """Row 0 ends by EOS; row 1 by its budget; after each action but the last the environment writes 6."""
    env = replying_env([[2], [3, 4]], 3, lambda _: [6], lambda text, action: action / 10, length=8)
    assert isinstance(env, BatchedTextEnv)
    rollout = collect_rollout(env, Scripted([[5, 1, 2], [2, 3, 4]]), None, {})
    assert rollout.input_ids.tolist() == [[2, 5, 6, 1, 0, 0, 0, 0], [3, 4, 2, 6, 3, 6, 4, 0]]
    assert rollout.attention_mask.sum(1).tolist() == [4, 7]
    assert rollout.prompt_length.tolist() == [1, 2]
    assert rollout.action_index.tolist() == [[1, 3, 0], [2, 4, 6]]
    assert rollout.actions.tolist() == [[5, 1, 0], [2, 3, 4]]
    assert rollout.step_mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollout.logprobs.tolist() == [[-1, -2, 0], [-1, -2, -3]]
    torch.testing.assert_close(rollout.rewards, torch.tensor([[0.5, 0.1, 0.0], [0.2, 0.3, 0.4]]))
    assert rollout.terminated.tolist() == [[False, True, False], [False] * 3]
    assert rollout.truncated.tolist() == [[False] * 3, [False, False, True]]
    assert (rollout.group.tolist(), rollout.num_tokens, len(rollout)) == ([0, 1], 5, 2)


def test_a_selection_acts_on_every_field(replying_env: Any) -> None:
    rollout = collect_rollout(replying_env([[2], [3, 4]], 2, length=8), Scripted([[5, 1], [2, 3]]), None, {})
    swapped = rollout.select(torch.tensor([1, 0, 1]))
    for field in fields(Rollout):
        assert torch.equal(getattr(swapped, field.name), getattr(rollout, field.name)[[1, 0, 1]])
    assert rollout.to("cpu").input_ids is rollout.input_ids


def test_groups_and_exact_answers_come_from_the_environment(text_env: Callable[[int], TextGenVectorEnv]) -> None:
    env = text_env(4)
    env.reset(seed=0)
    options = {"split": "train", "group_size": 2, "indices": [0, 1]}
    answers = [env.dataset.pool("train").examples[i].answer for i in (0, 0, 1, 1)]
    right = [[*env.tokenizer.encode(answer), env.tokenizer.eos_id] for answer in answers]
    clock = PhaseClock()
    rollout = collect_rollout(env, Scripted([right[0], [2, 2, 2], right[2], [right[3][0]] * 3]), None, options, clock)
    assert rollout.exact.tolist() == [True, False, True, False]
    assert rollout.rewards.sum(1).tolist() == [1, 0, 1, 0]
    assert rollout.rewards[0].tolist() == [0, 1, 0]
    assert rollout.truncated.any(1).tolist() == [False, True, False, True]
    assert rollout.group[0] == rollout.group[1] != rollout.group[2] == rollout.group[3]
    assert set(clock.take()) == {"env", "policy"}
    assert clock.take() == {}


def test_rows_outside_the_mask_are_not_acted_in(text_env: Callable[[int], TextGenVectorEnv]) -> None:
    """Two groups of two; of the first, nothing is recorded, scored or drawn."""
    env = text_env(4)
    env.reset(seed=0)  # all four rows have begun
    mask = np.array([False, False, True, True])
    options = {"split": "train", "group_size": 2, "indices": [1], "reset_mask": mask}
    answer = env.tokenizer.encode(env.dataset.pool("train").examples[1].answer)
    rollout = collect_rollout(env, Scripted([[1], [1], [*answer, 1], [1]]), None, options)
    assert rollout.group.tolist() == [4, 4], "the four before had a group each"
    assert rollout.exact.tolist() == [True, False]
    assert rollout.num_tokens == len(answer) + 2
    assert env.scorer.counters.scored == 2
    assert len(collect_rollout(env, Scripted([[1]] * 4), None, {})) == 4


def test_rows_that_reset_themselves_are_refused(replying_env: Any) -> None:
    env = replying_env([[2]], 2)
    env.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match=r"autoreset_mode=.* would mix episodes in one row; .*'disabled'"):
        collect_rollout(env, Scripted([[5, 1]]), None, {})


def test_an_environment_that_drops_an_action_is_found_out(replying_env: Any) -> None:
    class Dropping(replying_env):  # type: ignore[misc]  # a class from a fixture
        def step(self, actions: Any) -> Any:
            obs, *others = super().step(actions)
            obs["tokens"][:, 1] = 6
            return obs, *others

    with pytest.raises(ValueError, match="text does not hold the actions at the places they were taken"):
        collect_rollout(Dropping([[2]], 2), Scripted([[5, 1]]), None, {})


@dataclass(frozen=True)
class ExactText:
    """Prompt letters, response so far, and what the last token brought."""

    texts: tuple[tuple[int, ...], ...]
    reward: Tensor
    ended: Tensor

    @property
    def latent(self) -> Tensor:
        return torch.zeros((len(self.texts), 1))

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Tensor) -> "ExactText":
        return ExactText(tuple(self.texts[row] for row in rows.tolist()), self.reward[rows], self.ended[rows])

    def put(self, rows: Tensor, other: "ExactText") -> "ExactText":
        source = torch.arange(len(self)).index_copy(0, rows, len(self) + torch.arange(len(other)))
        return ExactText.cat([self, other]).select(source)

    @classmethod
    def cat(cls, tables: Sequence["ExactText"]) -> "ExactText":
        texts, rewards, ended = zip(*((table.texts, table.reward, table.ended) for table in tables), strict=True)
        return cls(sum(texts, ()), torch.cat(rewards), torch.cat(ended))


class ExactFirstLetter:
    """The true rules of the task: the prompt's first letter, then EOS (1), is paid; EOS ends."""

    action_conditional, max_horizon, models_replies = True, None, False

    def encode(
        self, input_ids: Any, attention_mask: Any, root_rows: Any = None, root_positions: Any = None
    ) -> ExactText:
        at = zip(root_rows.tolist(), root_positions.tolist(), strict=True)
        texts = tuple(tuple(input_ids[row, : position + 1].tolist()) for row, position in at)
        return ExactText(texts, torch.zeros(len(texts)), torch.zeros(len(texts), dtype=torch.bool))

    def step(self, state: ExactText, actions: Tensor) -> ExactText:
        texts = tuple((*text, action) for text, action in zip(state.texts, actions.tolist(), strict=True))
        reward = torch.tensor([float(text[3:] == (text[0], 1)) for text in texts])
        return ExactText(texts, reward, actions == 1)

    def predict(self, state: ExactText, with_logits: bool = True) -> Prediction:
        going_on = (~state.ended).float()
        return Prediction(torch.zeros((len(state), 7)), state.reward, going_on, torch.zeros(len(state)))


def test_one_loop_serves_the_real_and_the_imagined_environment(text_env: Callable[[int], TextGenVectorEnv]) -> None:
    """With the true rules in its head, imagination brings what reality brings, action by action."""
    real = text_env(32)
    obs, _ = real.reset(seed=3, options={"split": "train"})
    prompts = [row[:3].tolist() for row in obs["tokens"]]
    generator = torch.Generator().manual_seed(0)
    script = torch.randint(1, 7, (32, 3), generator=generator)
    script[::2, 0], script[::2, 1] = torch.tensor(prompts)[::2, 0], 1  # every other answer is right
    indices = {"split": "train", "prompts": [e.prompt for e in real._examples]}
    lived = collect_rollout(real, Scripted(script.tolist()), None, indices)
    imagined_env = ImaginedVectorEnv(
        ExactFirstLetter(), prompts, pad_id=0, eos_id=1, vocab_size=7, max_prompt=3, max_new=3
    )
    imagined = collect_rollout(imagined_env, Scripted(script.tolist()), None, {})
    for name in ("input_ids", "attention_mask", "action_index", "actions", "step_mask", "rewards"):
        assert torch.equal(getattr(imagined, name), getattr(lived, name)), name
    assert torch.equal(imagined.terminated, lived.terminated)
    assert torch.equal(imagined.truncated, lived.truncated)
    assert float(lived.rewards.sum()) >= 16
    assert bool(lived.truncated.any())
    assert bool(lived.terminated.any())
