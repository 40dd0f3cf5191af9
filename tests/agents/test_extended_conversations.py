"""Conversations on one cache: tokens and log-probabilities of a full forward, in one short forward an act."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.agents.policies import ActingPolicy, TrunkPolicy
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.envs import TextVectorEnv, make_text_vec
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

MakeModel = Callable[..., MTPModel]
WIDTH = 16


class FilledAnew:
    """Reads all of every text again whenever the environment wrote in one."""

    def __init__(self, model: MTPModel, temperature: float) -> None:
        self._make = lambda: TrunkPolicy(model, temperature)
        self._policy = self._make()
        self._last: np.ndarray | None = None

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        lengths = obs["length"][:, 0].copy()
        if self._last is not None and bool((lengths > self._last + 1).any()):
            self._policy = self._make()
        self._last = lengths
        return self._policy.act(obs, infos, generator)


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
        read: list[int] = []
        while not ended.all() and len(read) < 6:
            allowed = rng.random((5, 7)) < 0.5 if masked else None
            if allowed is not None:
                allowed[:, 2] = True
            seen.clear()
            step = policy.act(observe(texts), {} if allowed is None else {"action_mask": allowed.astype(int)}, None)
            assert len(seen) <= 1
            read += seen or [0]
            live = np.flatnonzero(~ended)
            ours = ActedStep(step.actions[live], step.logprobs[live])
            assert_step_is_the_trunks(
                model, [texts[row] for row in live], ours, None if allowed is None else allowed[live]
            )
            for row in live:
                room = WIDTH - len(texts[row]) - 1
                reply = rng.integers(2, 7, size=min(rng.integers(0, 5) * rng.integers(0, 2), room)).tolist()
                texts[row] = [*texts[row], int(step.actions[row]), *reply]
                ended[row] = len(texts[row]) == WIDTH or rng.random() < 0.1
        assert max(read[1:]) <= 5


def world_model(env: TextVectorEnv) -> MTPModel:
    config = LlamaConfig(
        vocab_size=env.tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        trunk = LlamaForCausalLM(config).double()
    return MTPModel.from_trunk(trunk, MTPConfig(depth=3), torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize(("name", "max_turn"), [("Pig", 1), ("Pig", 3), ("FrozenLake", 1), ("FrozenLake", 3)])
@torch.no_grad()
def test_episodes_of_worlds_are_those_of_a_session_filled_anew(name: str, max_turn: int) -> None:
    """The same generator gives the same episodes, with rows that end and are dropped, in a fraction of the tokens."""
    rollouts, tokens, num_acts = list[Rollout](), [], []
    for policy_class in (TrunkPolicy, FilledAnew):
        env = make_text_vec(f"worldmtp/{name}-v0", 6, max_turn=max_turn, pool_size=8)
        env.reset(seed=0)
        model = world_model(env)
        seen = widths(model)
        policy: ActingPolicy = policy_class(model, 0.8)
        generator = torch.Generator().manual_seed(1)
        rollouts += [collect_rollout(env, policy, generator, {}) for _ in range(2)]
        tokens.append(sum(seen))
        num_acts.append(len(seen))
        env.close()
    for ours, theirs in zip(rollouts[:2], rollouts[2:], strict=True):
        assert len(set(ours.step_mask.sum(dim=1).tolist())) > 1
        for field in ("input_ids", "action_index", "actions", "step_mask", "rewards", "terminated", "truncated"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-6, rtol=0)
    assert num_acts[0] == num_acts[1]
    assert tokens[0] < tokens[1] / 3


@pytest.mark.parametrize("event", ["replied", "reset", "changed", "another_action", "back", "weights"])
@torch.no_grad()
def test_what_is_extended_and_what_is_filled_anew(event: str, tiny_model: MakeModel) -> None:
    """Two acts, then what the environment did; the widths are the tokens a row that the trunk read."""
    model = tiny_model().double()
    policy, seen = TrunkPolicy(model, 1.0), widths(model)
    texts = [[2, 3], [4, 5, 6]]

    def act() -> None:
        chosen = policy.act(observe(texts), {}, None).actions.tolist()
        for row, token in enumerate(chosen):
            texts[row].append(token)

    act()
    act()
    if event in ("replied", "weights"):
        texts[1] += [3, 4]
    if event == "weights":
        model.get_output_embeddings().weight.mul_(-1)
    if event == "reset":
        texts[1] = [4]
    if event == "changed":
        texts[0][0] = 6
    if event == "another_action":
        texts[0][-1] = texts[0][-1] % 5 + 2
        texts[0] += [3]
    if event == "back":  # row 1 stands still, leaves, and goes on with a reply
        kept = texts[1].pop()
        act()
        texts[1].pop()
        texts[1] += [kept, 5]
    expected = {"replied": 3, "weights": 7, "reset": 4, "changed": 5, "another_action": 5, "back": 6}[event]
    step = policy.act(observe(texts), {}, None)
    assert seen[-1] == expected
    assert_step_is_the_trunks(model, texts, step)


@torch.no_grad()
def test_tokens_that_wait_behind_a_reply_are_thrown_away(tiny_model: MakeModel) -> None:
    """A model that drafts for itself decides four tokens; the world writes behind the first, in one row of two."""
    model = tiny_model().double()
    policy, seen = TrunkPolicy(model, 1.0, draft=model.trunk, num_draft=3), widths(model)
    texts = [[2, 3], [4, 5]]
    for reply in ([], [], [6], [], [], [2, 3, 4]):
        step = policy.act(observe(texts), {}, None)
        assert_step_is_the_trunks(model, texts, step)
        for row, token in enumerate(step.actions.tolist()):
            texts[row].append(token)
        texts[1] += reply
        seen.clear()
    step = policy.act(observe(texts), {}, None)
    assert seen == [4]
    assert_step_is_the_trunks(model, texts, step)


@torch.no_grad()
def test_one_step_episodes_on_the_same_prompts_are_drawn_anew(tiny_model: MakeModel) -> None:
    """All rows as they were: the next episode. With 7 tokens nearly alike, 32 rows repeat by chance once in 7^32."""
    policy, generator = TrunkPolicy(tiny_model(), 1.0), torch.Generator().manual_seed(0)
    obs = observe([[2, 3]] * 32)
    first, second = (policy.act(obs, {}, generator).actions.tolist() for _ in range(2))
    assert first != second
