"""Action masks in acting and in learning, and wrapped environments that are trained on as they are registered."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import worldmtp.envs
from worldmtp.agents.action_masks import allowed_tokens, forbid
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.evaluation import depth_predictions
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.ppo import policy_stats
from worldmtp.agents.rollout import collect_rollout
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextGenVectorEnv, TextVectorEnv, VectorActionMask, VectorPotentialShaping, make_text_vec
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
ENV_ID = "TestMaskedLetters-v0"
# Ids of the tests' environment: pad 0, EOS 1, a b c d 2 to 5, = 6.
ALLOWED = [1, 2, 3]
FORBIDDEN = [0, 4, 5, 6]


@pytest.fixture
def masked(text_env: MakeEnv) -> Callable[[int], VectorActionMask]:
    return lambda num_envs: VectorActionMask(text_env(num_envs), alphabet="ab")


@pytest.fixture
def registered(text_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An id whose vector entry point puts a mask over shaping over the rows."""

    def make(num_envs: int = 1, autoreset_mode: Any = None) -> VectorActionMask:
        shaped = VectorPotentialShaping(text_env(num_envs), lambda example, text: 0.25 * len(text), gamma=1.0)
        return VectorActionMask(shaped, alphabet="ab")

    monkeypatch.setattr(worldmtp.envs, "masked_letters", make, raising=False)
    gymnasium.register(
        ENV_ID, entry_point="worldmtp.envs:TextGenEnv", vector_entry_point="worldmtp.envs:masked_letters"
    )
    yield ENV_ID
    del gymnasium.registry[ENV_ID]


def make_trainer(env: TextVectorEnv, model: MTPModel, use: str = "off", draft: str = "none") -> ImaginationTrainer:
    rollout = RolloutConfig(num_iterations=2, num_prompts=4, group_size=4, draft=draft)
    ppo = PPOConfig(learning_rate=1e-3, ent_coef=0.01)
    return ImaginationTrainer(model, env, rollout, ppo, WorldModelConfig(), ImaginationConfig(use=use, horizon=1), 0)


def test_registered_wrappers_are_in_force_in_training(registered: str, tiny_model: MakeModel) -> None:
    env = make_text_vec(registered, 16)
    metrics, rollout = make_trainer(env, tiny_model()).step()
    assert set(rollout.actions[rollout.step_mask].tolist()) <= set(ALLOWED)
    # The potential is a quarter of the letters written: each but the last step of a text adds 1/4 and nothing else,
    # and the last takes all of it back, beside the score.
    inner = rollout.step_mask & ~rollout.terminated & ~rollout.truncated
    assert bool(inner.any())
    assert rollout.rewards[inner].unique().tolist() == [0.25]
    written = inner.sum(dim=1).float()
    last = torch.where(rollout.terminated | rollout.truncated, rollout.rewards, 0.0).sum(dim=1)
    torch.testing.assert_close(last + 0.25 * written, rollout.exact.float())
    assert all(np.isfinite(value) for value in metrics.values())
    # The very first minibatch has the policy that acted: the ratio is 1 where both are masked alike.
    assert abs(metrics["losses/approx_kl"]) < 0.05


def test_log_probabilities_are_of_the_allowed_tokens(
    masked: Callable[[int], VectorActionMask], tiny_model: MakeModel
) -> None:
    """Held against a softmax over the three allowed logits, of one forward of each text by the trunk alone."""
    model = tiny_model()
    with torch.no_grad():
        rollout = collect_rollout(masked(8), TrunkPolicy(model, 0.7), torch.Generator().manual_seed(0), {})
        for row, step in torch.nonzero(rollout.step_mask).tolist():
            place = int(rollout.action_index[row, step])
            logits = model.trunk(input_ids=rollout.input_ids[row, None, :place]).logits[0, -1] / 0.7
            expected = logits[ALLOWED].log_softmax(dim=0)[ALLOWED.index(int(rollout.actions[row, step]))]
            torch.testing.assert_close(rollout.logprobs[row, step], expected, atol=1e-5, rtol=1e-5)
        stats = policy_stats(model, model.trunk, rollout, 0.7, num_likely=7)
    assert stats.likely is not None
    log_policy = torch.empty_like(stats.likely.logprobs).scatter(2, stats.likely.ids, stats.likely.logprobs)
    taken = log_policy.gather(2, rollout.actions[..., None])[..., 0]
    torch.testing.assert_close(taken[rollout.step_mask], rollout.logprobs[rollout.step_mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stats.ref_logprobs[rollout.step_mask], taken[rollout.step_mask])
    probs = log_policy.exp()[rollout.step_mask]
    assert bool((probs[:, FORBIDDEN] == 0).all())


def test_greedy_acting_takes_the_best_allowed_token(
    masked: Callable[[int], VectorActionMask], tiny_model: MakeModel
) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.trunk.get_output_embeddings().weight[6] *= 50  # "=", which is forbidden, is now what the trunk prefers
        rollout = collect_rollout(masked(8), TrunkPolicy(model, 1.0), None, {})
    assert set(rollout.actions[rollout.step_mask].tolist()) <= set(ALLOWED)


def test_masked_entropy_and_its_gradient_by_hand() -> None:
    """Two allowed tokens of logits 0 and ln 3 are 1/4 and 3/4; dH/dz_i = -p_i (ln p_i + H)."""
    logits = torch.tensor([[5.0, 0.0, float(np.log(3.0))]], requires_grad=True)
    allowed = torch.tensor([[False, True, True]])
    log_policy = forbid(logits, allowed).log_softmax(dim=-1)
    entropy = entropy_per_token(log_policy)
    expected = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert float(entropy[0].detach()) == pytest.approx(expected, abs=1e-6)
    entropy.sum().backward()
    slopes = [0.0, -0.25 * (np.log(0.25) + expected), -0.75 * (np.log(0.75) + expected)]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(slopes, abs=1e-6)


def test_ids_beyond_the_mask_are_forbidden() -> None:
    """A model's vocabulary may be padded beyond the tokenizer's."""
    forbidden = forbid(torch.zeros(1, 4), torch.tensor([[True, False]]))
    assert forbidden.tolist() == [[0.0, float("-inf"), float("-inf"), float("-inf")]]


def test_rows_without_a_mask_of_their_own_may_write_anything() -> None:
    infos = {"action_mask": np.array([[0, 1], [0, 0]], dtype=np.int8), "_action_mask": np.array([True, False])}
    allowed = allowed_tokens(infos)
    assert allowed is not None
    assert allowed.tolist() == [[False, True], [True, True]]
    assert allowed_tokens({}) is None
    with pytest.raises(ValueError, match=r"infos\['action_mask'\] is float64 of shape \(2,\); expected integers"):
        allowed_tokens({"action_mask": np.zeros(2)})


@pytest.mark.parametrize(
    ("changes", "advice"),
    [({"use": "baseline"}, "imagination=off"), ({"draft": "mtp"}, r"agent\.rollout\.draft=none")],
)
def test_what_would_choose_without_a_mask_is_refused(
    masked: Callable[[int], VectorActionMask], tiny_model: MakeModel, changes: dict[str, str], advice: str
) -> None:
    with pytest.raises(ValueError, match=rf"no mask is known, and the environment masks actions; set {advice}\.$"):
        make_trainer(masked(16), tiny_model(), **changes)


def test_a_drafting_policy_refuses_a_mask(masked: Callable[[int], VectorActionMask], tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"draft='mtp' decides tokens whose action mask is not known yet"):
        collect_rollout(masked(2), TrunkPolicy(tiny_model(), 1.0, draft="mtp"), None, {})


def test_what_is_read_of_a_masked_rollout_is_the_policy_that_acted(
    masked: Callable[[int], VectorActionMask], tiny_model: MakeModel
) -> None:
    model = tiny_model()
    rollout = collect_rollout(masked(8), TrunkPolicy(model, temperature=0.7), torch.Generator().manual_seed(0), {})
    said = depth_predictions(model, rollout, temperature=0.7)
    acted = said.logprobs[..., 0].gather(1, rollout.action_index)
    torch.testing.assert_close(acted[rollout.step_mask], rollout.logprobs[rollout.step_mask], rtol=0, atol=1e-5)
    for depth in range(said.top1_ids.shape[-1]):
        top = said.top1_ids[..., depth].gather(1, rollout.action_index)[rollout.step_mask]
        known = ~said.logprobs[..., depth].gather(1, rollout.action_index)[rollout.step_mask].isnan()
        assert set(top[known].tolist()) <= set(ALLOWED)
