"""Conversations on one cache: tokens and log-probabilities of a full forward, in one short forward an act."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.action_masks import allowed_tokens
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.envs import TextVectorEnv, make_text_vec
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

MakeModel = Callable[..., MTPModel]
WIDTH = 16


class FilledAnew(TrunkPolicy):
    """Reads all of every text again whenever the environment wrote in one."""

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        queues, lengths = self._queues, obs["length"][:, 0]
        if queues is not None and queues.follow(obs["tokens"], lengths) and bool((queues._shared < lengths).any()):
            self._queues = None
        return super().act(obs, infos, generator)


def observe(texts: list[list[int]]) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(texts), WIDTH), dtype=np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return {"tokens": tokens, "length": np.array([[len(text)] for text in texts])}


def widths(model: MTPModel) -> list[int]:
    """Fills itself with the number of tokens a row of every later trunk forward."""
    seen: list[int] = []
    hook = lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1])  # noqa: E731
    model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def assert_step_is_the_trunks(
    model: MTPModel, texts: list[list[int]], step: ActedStep, allowed: np.ndarray | None = None
) -> None:
    """Greedy tokens and their log-probabilities, of uncached forwards of each text alone."""
    for row, text in enumerate(texts):
        logits = model.trunk(input_ids=torch.tensor([text])).logits[0, -1]
        if allowed is not None:
            logits = logits.masked_fill(~torch.from_numpy(allowed[row]), float("-inf"))
        assert int(step.actions[row]) == int(logits.argmax())
        torch.testing.assert_close(step.logprobs[row], logits.log_softmax(-1).max(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("draft", ["none", "mtp", "lookup", "model"])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_every_decision_is_that_of_a_full_forward(draft: str, masked: bool, tiny_model: MakeModel) -> None:
    """Replies of 0 to 4 tokens in random rows, rows that end at random; one forward of no more than five tokens an act.

    The widths that are seen are those of the whole batch: the first fills, and no other is wider than a reply.
    """
    if masked and draft != "none":
        return  # refused, which is tested elsewhere
    for seed in range(4):
        rng, model = np.random.default_rng(seed), tiny_model().double()
        seen = widths(model)
        options: dict[str, Any] = {"draft": draft}
        if draft == "model":
            options = {"draft": tiny_model(seed=1).double().trunk, "num_draft": 2}
        policy = TrunkPolicy(model, 1.0, **options)
        texts = [rng.integers(2, 7, size=rng.integers(1, 4)).tolist() for _ in range(5)]
        ended = np.zeros(5, dtype=bool)
        for act in range(6):
            allowed = rng.random((5, 7)) < 0.5 if masked else None
            if allowed is not None:
                allowed[:, 2] = True
            num_forwards = len(seen)
            step = policy.act(observe(texts), {} if allowed is None else {"action_mask": allowed}, None)
            assert len(seen) - num_forwards <= 1
            del seen[num_forwards + 1 :]
            live = np.flatnonzero(~ended)
            assert_step_is_the_trunks(
                model,
                [texts[row] for row in live],
                ActedStep(step.actions[live], step.logprobs[live]),
                None if allowed is None else allowed[live],
            )
            del seen[num_forwards + 1 :]
            for row in live:
                room = WIDTH - len(texts[row]) - 1
                reply = rng.integers(2, 7, size=min(rng.integers(0, 5) * rng.integers(0, 2), room)).tolist()
                texts[row] = [*texts[row], int(step.actions[row]), *reply]
                ended[row] = len(texts[row]) == WIDTH or rng.random() < 0.1
            if ended.all():
                break
        assert max(seen[1:]) <= 5
