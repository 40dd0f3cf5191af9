"""Who acts: the cached trunk says what a full forward says, whatever the environment does to the text."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import PPOConfig
from worldmtp.agents.policies import ActingPolicy, LatentPolicy, TrunkPolicy, sample_step
from worldmtp.agents.ppo import PPOAgent
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.dynamics import OracleWorldModel
from worldmtp.envs import ImaginedVectorEnv
from worldmtp.model import MTPModel

MakeModel = Callable[..., MTPModel]
PROMPTS = [[2], [3, 4], [5, 6, 2], [4]]


def widths(model: MTPModel) -> list[int]:
    """Fills itself with the number of tokens a row of every later trunk forward: more than one is a prefill."""
    seen: list[int] = []
    hook = lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1])  # noqa: E731
    model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def full_logprobs(model: MTPModel, rollout: Rollout, temperature: float) -> torch.Tensor:
    """Of the actions taken, from uncached forwards of each text alone."""
    logprobs = torch.zeros_like(rollout.logprobs)
    for b, t in torch.nonzero(rollout.step_mask).tolist():
        prefix = rollout.input_ids[b : b + 1, : rollout.action_index[b, t]]
        logits = model.trunk(input_ids=prefix).logits[0, -1]
        logprobs[b, t] = (logits / temperature).log_softmax(-1)[rollout.actions[b, t]]
    return logprobs


@pytest.mark.parametrize("reply", [[], [6], [2, 5]])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_cached_logprobs_are_those_of_the_full_forward(
    temperature: float, reply: list[int], replying_env: Any, tiny_model: MakeModel
) -> None:
    """One prefill, of three tokens at most, and then one forward an act over the last token and what is written."""
    model = tiny_model()
    env = replying_env(PROMPTS, 4, lambda _: reply)
    seen = widths(model)
    rollout = collect_rollout(env, TrunkPolicy(model, temperature), torch.Generator().manual_seed(0), {})
    assert seen == [3] + [1 + len(reply)] * 3
    assert 4 < rollout.num_tokens < 16  # some rows end early and stand still
    torch.testing.assert_close(rollout.logprobs, full_logprobs(model, rollout, temperature), atol=1e-5, rtol=0)


@pytest.mark.parametrize("draft", ["mtp", "lookup"])
@pytest.mark.parametrize("greedy", [True, False])
@torch.no_grad()
def test_tokens_of_queues_are_those_of_a_trunk_alone(
    greedy: bool, draft: str, replying_env: Any, tiny_model: MakeModel
) -> None:
    """With drafts there are fewer forwards; greedy texts are the same, and log-probabilities those of full forwards."""
    model = tiny_model()
    seen = widths(model)
    generator = None if greedy else torch.Generator().manual_seed(0)
    env = replying_env(PROMPTS, 8, lambda _: [])
    rollout = collect_rollout(env, TrunkPolicy(model, 0.7, draft), generator, {})
    num_forwards = len(seen)
    torch.testing.assert_close(rollout.logprobs, full_logprobs(model, rollout, 0.7), atol=1e-5, rtol=0)
    if greedy:
        plain = collect_rollout(replying_env(PROMPTS, 8, lambda _: []), TrunkPolicy(model, 0.7), None, {})
        assert torch.equal(rollout.input_ids, plain.input_ids)
        assert num_forwards <= len(seen) - num_forwards


@torch.no_grad()
def test_rows_that_outrun_their_text_leave_the_session(replying_env: Any, tiny_model: MakeModel) -> None:
    """Episode after episode to the environment's limit, which drafts would run past."""
    model = tiny_model()
    policy = TrunkPolicy(model, 1.0, draft="mtp", num_draft=1)
    env = replying_env([[2], [3, 4]], 3, lambda _: [])
    for seed in range(6):
        rollout = collect_rollout(env, policy, torch.Generator().manual_seed(seed), {})
        torch.testing.assert_close(rollout.logprobs, full_logprobs(model, rollout, 1.0), atol=1e-5, rtol=0)


def observe(texts: list[list[int]]) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(texts), 8), dtype=np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return {"tokens": tokens, "length": np.array([[len(text)] for text in texts])}


@pytest.mark.parametrize("event", ["grew", "reset", "another_prompt", "paused"])
@torch.no_grad()
def test_the_session_is_filled_anew_where_the_text_is_not_its_own(event: str, tiny_model: MakeModel) -> None:
    """A prompt that looks like the old text plus the chosen token, and a row that moves on after standing still."""
    model = tiny_model()
    policy, seen = TrunkPolicy(model, 1.0), widths(model)
    texts = [[2, 3], [4, 5, 6]]
    for _ in range(2):
        chosen = policy.act(observe(texts), {}, None).actions.tolist()
        texts = [[*text, token] for text, token in zip(texts, chosen, strict=True)]
    expected = [3, 1, 1]
    if event == "reset":
        texts[1], expected = [4], [3, 1, 4]
    if event == "another_prompt":
        texts[0][0], expected = 6, [3, 1, 5]
    if event == "paused":
        paused = [texts[0], texts[1][:-1]]
        chosen = policy.act(observe(paused), {}, None).actions.tolist()
        texts = [[*paused[0], chosen[0]], [*paused[1], chosen[1]]]
        expected = [3, 1, 1, 5]
    step = policy.act(observe(texts), {}, None)
    assert seen == expected
    for row, text in enumerate(texts):
        logits = model.trunk(input_ids=torch.tensor([text])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(step.logprobs[row], logits.max(), atol=1e-5, rtol=0)


def test_sampling_by_hand() -> None:
    """Logits ln 1, ln 3 at temperature 1/2: probabilities 1/10 and 9/10."""
    logits = torch.tensor([[0.0, math.log(3.0)]]).expand(4000, 2)
    step = sample_step(logits, 0.5, torch.Generator().manual_seed(0))
    taken = step.actions.float().mean()
    # Standard deviation sqrt(.09 / 4000) = .0047; six of them: false alarm below 1e-8, and the seed is fixed.
    assert float(taken) == pytest.approx(0.9, abs=0.0285)
    torch.testing.assert_close(step.logprobs.exp(), torch.where(step.actions == 1, 0.9, 0.1))
    greedy = sample_step(logits, 0.5, None)
    assert bool((greedy.actions == 1).all())


def test_a_latent_policy_acts_by_what_is_imagined(tiny_model: MakeModel) -> None:
    """In an imagined environment of the oracle the policy logits are the trunk's own on the imagined text."""
    model = tiny_model()
    env = ImaginedVectorEnv(
        OracleWorldModel(model), PROMPTS, pad_id=0, eos_id=1, vocab_size=7, max_prompt=3, max_new=3,
        continuation_threshold=None,
    )  # fmt: skip
    rollout = collect_rollout(env, LatentPolicy(0.7), torch.Generator().manual_seed(0), {})
    with torch.no_grad():
        torch.testing.assert_close(rollout.logprobs, full_logprobs(model, rollout, 0.7), atol=1e-5, rtol=0)
    assert rollout.num_tokens > 4


def test_a_latent_policy_needs_imagined_logits() -> None:
    with pytest.raises(
        KeyError, match=r"no 'policy_logits': LatentPolicy acts in an ImaginedVectorEnv; use TrunkPolicy"
    ):
        LatentPolicy(1.0).act(observe([[2]]), {}, None)


def test_a_temperature_of_zero_is_refused(tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be positive and finite; for greedy acting pass"):
        TrunkPolicy(tiny_model(), 0.0)
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be positive and finite; for greedy acting"):
        LatentPolicy(0.0)
    assert isinstance(LatentPolicy(1.0), ActingPolicy)


def test_who_acts_says_at_what_temperature(tiny_model: MakeModel) -> None:
    """None is taken for granted: at another one, ratios and what is imagined are another policy's."""
    for make in (TrunkPolicy, lambda model: LatentPolicy(), lambda model: PPOAgent(model, PPOConfig())):
        with pytest.raises(TypeError, match=r"missing .*'temperature'"):
            make(tiny_model())
    with pytest.raises(ValueError, match=r"temperature=-1\.0 must be positive and finite"):
        PPOAgent(tiny_model(), PPOConfig(), -1.0)


def test_a_latent_policy_leaves_out_what_is_forbidden() -> None:
    """Of three tokens the likeliest is forbidden; the others have logits 0 and ln 3 / 2, at 1/2 1/4 and 3/4."""
    logits = np.array([[0.0, math.log(3.0) / 2, 50.0]], dtype=np.float32)
    infos = {"policy_logits": logits, "action_mask": np.array([[1, 1, 0]], dtype=np.int8)}
    step = LatentPolicy(0.5).act(observe([[2]]), infos, None)
    assert step.actions.tolist() == [1]
    assert float(step.logprobs) == pytest.approx(math.log(0.75), abs=1e-6)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="logits are not finite while acting"):
        sample_step(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), 1.0, torch.Generator())


@torch.no_grad()
def test_a_round_may_run_past_the_end_of_every_text(replying_env: Any, tiny_model: MakeModel) -> None:
    """A model that drafts for itself is always right: rounds of four tokens over episodes of one to seven."""
    model = tiny_model()
    for length in range(1, 8):
        policy = TrunkPolicy(model, 1.0, draft=model.trunk, num_draft=3)
        rollout = collect_rollout(replying_env([[2], [3, 4, 5]], length, lambda _: []), policy, None, {})
        torch.testing.assert_close(rollout.logprobs, full_logprobs(model, rollout, 1.0), atol=1e-5, rtol=0)
        assert policy.tokens_per_forward == 4 or length == 1


@torch.no_grad()
def test_a_new_episode_on_the_same_prompt_is_drawn_anew(tiny_model: MakeModel) -> None:
    """With 7 tokens nearly equally likely, 32 rows of 3 tokens repeat by chance once in 7^96 runs."""
    policy, generator = TrunkPolicy(tiny_model(), 1.0), torch.Generator().manual_seed(0)
    episodes = []
    for _ in range(2):
        texts = [[2, 3] for _ in range(32)]
        for _ in range(3):
            chosen = policy.act(observe(texts), {}, generator).actions.tolist()
            texts = [[*text, token] for text, token in zip(texts, chosen, strict=True)]
        episodes.append(texts)
    assert episodes[0] != episodes[1]


@torch.no_grad()
def test_tokens_that_wait_are_not_of_weights_that_are_gone(tiny_model: MakeModel) -> None:
    """A round of drafts decides four tokens; a trunk that is written to meanwhile decides again, from where it is."""
    model, text = tiny_model(), [2, 3]
    policy = TrunkPolicy(model, 1.0, draft=model.trunk, num_draft=3)
    for step in range(6):
        acted = policy.act(observe([text]), {}, None)
        logits = model.trunk(input_ids=torch.tensor([text])).logits[0, -1]
        log_policy = logits.log_softmax(-1)
        assert int(acted.actions[0]) == int(logits.argmax())
        torch.testing.assert_close(acted.logprobs[0], log_policy.max(), atol=1e-5, rtol=0)
        text = [*text, int(acted.actions[0])]
        if step in (1, 3):
            model.get_output_embeddings().weight.copy_(-model.get_output_embeddings().weight)
