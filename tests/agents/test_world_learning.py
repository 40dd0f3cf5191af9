"""Targets of the world model, laid out by hand, and what its losses train."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldmtp.agents import world_learning
from worldmtp.agents.config import PPOConfig, WorldModelConfig
from worldmtp.agents.rollout import Rollout, action_mask
from worldmtp.agents.world_learning import StateTargets, WorldModelLearner, frozen, state_targets
from worldmtp.dynamics import acting_policy
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]
MakeModel = Callable[..., MTPModel]
GAMMA = 0.5


def two_rows(make: MakeRollout) -> Rollout:
    """Prompts of three tokens and of one; the first terminates, the second is truncated."""
    return make(
        [
            {"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.25, 1.0], "end": "terminated"},
            {"prompt": [2], "actions": [3, 4], "rewards": [0.5, 0.25], "end": "truncated"},
        ],
        steps=3,
        length=7,
    )


def bits(mask: Tensor) -> list[str]:
    return ["".join(str(int(bit)) for bit in row) for row in mask]


def test_targets_by_hand(hand_rollout: MakeRollout) -> None:
    """G of row 0: 1; .25 + .5 = .75; .375. Of row 1, where truncation ends: .25; .5 + .125 = .625."""
    targets = state_targets(two_rows(hand_rollout), PPOConfig(gamma=GAMMA))
    #  row 0   p  p  p      a_0    a_1   EOS   -         row 1   p      a_0   a_1
    assert targets.rewards.tolist() == [[0, 0, 0, 0, 0.25, 1, 0], [0, 0.5, 0.25, 0, 0, 0, 0]]
    assert targets.returns.tolist() == [[0, 0, 0.375, 0.75, 1, 0, 0], [0.625, 0.25, 0, 0, 0, 0, 0]]
    assert bits(targets.continues) == ["0001100", "0100000"]
    assert bits(targets.arrived_mask) == ["0001110", "0110000"]
    assert bits(targets.return_mask) == ["0011110", "1110000"]


def test_a_truncation_that_goes_on_has_no_known_return(hand_rollout: MakeRollout) -> None:
    targets = state_targets(two_rows(hand_rollout), PPOConfig(gamma=GAMMA, bootstrap_truncated=True))
    assert bits(targets.continues) == ["0001100", "0110000"]
    assert bits(targets.arrived_mask) == ["0001110", "0110000"]
    assert bits(targets.return_mask) == ["0011110", "0000000"]


def test_going_on_is_not_a_matter_of_discounts(hand_rollout: MakeRollout) -> None:
    assert bits(state_targets(two_rows(hand_rollout), PPOConfig(gamma=0.0)).continues) == ["0001100", "0100000"]


def test_targets_around_tokens_of_the_environment(hand_rollout: MakeRollout) -> None:
    """It writes 5 5 after the first action: the return from that action on is the next state's, 1; between, unknown."""
    row = {"prompt": [2, 3], "actions": [4, 1], "rewards": [0.25, 1.0], "end": "terminated", "wrote": [[5, 5], []]}
    targets = state_targets(hand_rollout([row], steps=2, length=7), PPOConfig())
    #       text               p     p   a_0    5    5  EOS    -
    assert targets.rewards.tolist() == [[0, 0, 0.25, 0, 0, 1, 0]]
    assert targets.returns.tolist() == [[0, 1.25, 1, 0, 1, 0, 0]]
    assert bits(targets.continues) == ["0010000"]
    assert bits(targets.arrived_mask) == ["0010010"]
    assert bits(targets.return_mask) == ["0110110"]


def perfect_world_losses(
    learner: WorldModelLearner, model: MTPModel, rollout: Rollout, targets: StateTargets
) -> dict[str, float]:
    """Losses of world heads at latents that hold the position, trained on ``targets`` until they know them."""
    latent = torch.zeros((*rollout.input_ids.shape, 32))
    latent[..., :7] = torch.eye(7)
    latent[1, :, 8] = 1.0
    optimizer = torch.optim.Adam(model.world_heads.parameters(), lr=0.03)
    losses: dict[str, Tensor] = {}
    for _ in range(150):
        losses = learner._world_losses(latent, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return {name: float(loss.detach()) for name, loss in losses.items()}


def test_the_world_losses_reach_their_floor(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    """Rewards and ends are learnt as they stand in the text: the two-hot's own entropy is all that is left.

    Bins are 0, .1 .. 1: of the rewards 0, .25, 1, .5, .25 two lie between bins, of entropy ln 2: 2 / 5 ln 2 = .277.
    """
    model, rollout = tiny_model(), two_rows(hand_rollout)
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(gamma=GAMMA), temperature=1.0)
    losses = perfect_world_losses(learner, model, rollout, state_targets(rollout, PPOConfig(gamma=GAMMA)))
    assert losses["reward"] == pytest.approx(0.277, abs=0.02)
    assert losses["continuation"] < 0.02


def test_depth_two_is_asked_about_the_state_one_token_later(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    """Whatever depth 2 is asked at position i, depth 1 is asked at i + 1; the last token has no such state."""
    rollout = two_rows(hand_rollout)
    learner = WorldModelLearner(tiny_model(depth=2), WorldModelConfig(), PPOConfig(), temperature=1.0)
    asked: list[StateTargets] = []
    nothing = {name: torch.zeros(()) for name in ("reward", "continuation", "value")}
    learner._world_losses = lambda latent, targets: asked.append(targets) or nothing  # type: ignore[method-assign]
    learner.losses(rollout)
    first, second = asked
    for b, i in torch.nonzero(second.arrived_mask).tolist():
        assert float(second.rewards[b, i]) == float(first.rewards[b, i + 1])
        assert float(second.returns[b, i]) == float(first.returns[b, i + 1])
        assert bool(second.continues[b, i]) == bool(first.continues[b, i + 1])
    assert bits(second.arrived_mask) == ["0011100", "1100000"]
    assert bits(second.return_mask) == ["0111100", "1100000"]


def test_learning_leaves_the_trunk_alone_and_lowers_the_loss(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    model, rollout = tiny_model(), two_rows(hand_rollout)
    before = [parameter.clone() for parameter in model.trunk.parameters()]
    learner = WorldModelLearner(
        model, WorldModelConfig(num_updates=30, world_heads_learning_rate=3e-3), PPOConfig(), temperature=1.0
    )
    start = float(learner.losses(rollout)[0].detach())
    metrics = learner.learn(rollout, torch.Generator().manual_seed(0))
    assert float(learner.losses(rollout)[0].detach()) < 0.8 * start
    assert {"world_model/loss", "world_model/depth_2/ce", "world_model/depth_3/ce"} <= metrics.keys()
    assert all(torch.equal(a, b) for a, b in zip(before, model.trunk.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.trunk.parameters())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_heads_that_imagine_the_law_of_their_tokens_have_the_least_loss(
    temperature: float, hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    """After 3 comes 4 in three of four episodes: the least cross-entropy is -3/4 ln 3/4 - 1/4 ln 1/4 = .562."""
    rows = [{"prompt": [2], "actions": [3, a], "rewards": [0.0, 0.0], "end": "terminated"} for a in (4, 4, 4, 5)]
    model, rollout = tiny_model(depth=2), hand_rollout(rows, steps=2, length=3)
    law = torch.tensor([1e-9, 1e-9, 1e-9, 1e-9, 0.75, 0.25, 1e-9])
    logits = temperature * law.log()  # of heads whose imagined policy is the law
    assert acting_policy(temperature)(logits[None]).exp()[0].tolist() == pytest.approx(law.tolist(), abs=1e-6)
    model.policy_logits = lambda raw: logits.expand(*raw.shape[:-1], -1)  # type: ignore[method-assign]
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature)
    with torch.no_grad():
        assert learner.losses(rollout)[1]["world_model/depth_2/ce"] == pytest.approx(0.562, abs=1e-3)


@pytest.mark.parametrize("ce_coef", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("temperature", "num_tokens"), [(1.0, 7), (0.5, 7), (2.0, 6)])
def test_the_loss_and_its_gradients_are_those_of_the_acting_policys_logits(
    ce_coef: float, temperature: float, num_tokens: int, hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    """Means per depth of ce -log q + (1 - ce) KL(p, q), by autograd; q, p are softmax of ``logits_of`` / temperature.

    p is what the trunk says one step before the token that depth k foresees, and a constant.
    """
    model, rollout = tiny_model().double(), two_rows(hand_rollout)
    rollout = replace(rollout, input_ids=rollout.input_ids.clamp_max(num_tokens - 1))
    model.limit_tokens(num_tokens)
    kl_coef = 1 - ce_coef
    only_tokens = WorldModelConfig(
        ce_coef=ce_coef, kl_coef=kl_coef, reward_coef=0.0, continuation_coef=0.0, value_coef=0.0
    )
    learner = WorldModelLearner(model, only_tokens, PPOConfig(), temperature)
    weights = [*model.heads.parameters()]

    latents = model.latents(rollout.input_ids, rollout.attention_mask)
    log_p = (model.logits_of(latents[0]) / temperature).log_softmax(-1).detach()
    chosen, crosses, kls = action_mask(rollout), [], []
    for depth in (2, 3):
        log_q = (model.logits_of(latents[depth - 1][:, :-depth], depth) / temperature).log_softmax(-1)
        ce = -log_q.gather(2, rollout.input_ids[:, depth:, None])[..., 0]
        teacher = log_p[:, depth - 1 : -1]
        kl = (teacher.exp() * (teacher - log_q)).sum(-1)
        crosses.append(ce[chosen[:, depth:]].mean())
        kls.append(kl[chosen[:, depth:]].mean())
    expected = ce_coef * torch.stack(crosses).mean() + kl_coef * torch.stack(kls).mean()
    by_hand = torch.autograd.grad(expected, weights, allow_unused=True)

    with frozen(model.trunk):
        loss, metrics = learner.losses(rollout)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for name, means in (("ce", crosses), ("kl_trunk", kls)):
        if name == "kl_trunk" and not kl_coef:
            assert "world_model/depth_2/kl_trunk" not in metrics
            continue
        assert [metrics[f"world_model/depth_{depth}/{name}"] for depth in (2, 3)] == pytest.approx(
            [float(mean.detach()) for mean in means], rel=1e-12
        )
    for found, right in zip(torch.autograd.grad(loss, weights, allow_unused=True), by_hand, strict=True):
        assert (found is None) == (right is None)
        assert found is None or torch.allclose(found, right, rtol=1e-9, atol=1e-14)


def test_agreement_is_the_share_of_equal_greedy_tokens(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    """By its definition, position by position; the text itself is neither's choice everywhere."""
    model, rollout = tiny_model(), two_rows(hand_rollout)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.mul_(2.0)
    metrics = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0).measure(
        rollout, torch.Generator().manual_seed(0)
    )
    latents = model.latents(rollout.input_ids, rollout.attention_mask)
    greedy = [model.logits_of(latent, depth).argmax(-1) for depth, latent in enumerate(latents, start=1)]
    shares = {}
    for depth in (2, 3):
        # Actions of row 0 stand at 3, 4, 5, of row 1 at 1, 2; the position that foresees them must be in the text.
        places = [(b, at) for b, ats in ((0, (3, 4, 5)), (1, (1, 2))) for at in ats if at - depth >= 0]
        same = [bool(greedy[depth - 1][b, at - depth] == greedy[0][b, at - 1]) for b, at in places]
        shares[depth] = sum(same) / len(same)
    assert {depth: metrics[f"world_model/depth_{depth}/agreement"] for depth in (2, 3)} == pytest.approx(shares)
    assert len({0.0, 1.0, *shares.values()}) > 2


def test_heads_that_say_what_the_trunk_says_agree(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    """A trunk of a constant favourite, and heads on the same LM head; the text never has that token."""
    model, rollout = tiny_model(), two_rows(hand_rollout)
    constant = torch.zeros(7)
    constant[0] = 1.0
    model.policy_logits = lambda raw: constant.expand(*raw.shape[:-1], -1)  # type: ignore[method-assign]
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    metrics = learner.measure(rollout, torch.Generator().manual_seed(0))
    assert [metrics[f"world_model/depth_{depth}/agreement"] for depth in (2, 3)] == [1.0, 1.0]


def test_a_depth_that_no_text_is_long_enough_for_has_no_agreement(
    hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    rollout = hand_rollout([{"prompt": [2], "actions": [3], "rewards": [0.0], "end": "truncated"}] * 2, 1, 3)
    learner = WorldModelLearner(tiny_model(), WorldModelConfig(), PPOConfig(), temperature=1.0)
    metrics = learner.measure(rollout, torch.Generator().manual_seed(0))
    assert not [tag for tag in metrics if tag.endswith("agreement")]


def test_blind_heads_have_a_sensitivity_of_one(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    model, rollout = tiny_model(), two_rows(hand_rollout)
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    name = "world_model/action_shuffle_loss_ratio"
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    assert any(abs(learner.measure(rollout, seed)[name] - 1) > 1e-3 for seed in seeds)
    twins = replace(rollout, input_ids=rollout.input_ids[[0, 0]], attention_mask=rollout.attention_mask[[0, 0]])
    assert learner.measure(twins, seeds[0])[name] == pytest.approx(1.0)
    assert (
        WorldModelLearner(tiny_model(depth=1), WorldModelConfig(), PPOConfig(), temperature=1.0).measure(
            rollout, seeds[0]
        )
        == {}
    )


def test_a_loss_that_is_not_finite_is_not_applied(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    model, rollout = tiny_model(), two_rows(hand_rollout)
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    with torch.no_grad():
        model.world_heads.reward[-1].bias.fill_(float("nan"))
    before = [parameter.clone() for parameter in model.heads.parameters()]
    with pytest.raises(
        FloatingPointError, match=r"world_model/loss is nan, world_model/reward_loss is nan; the update was not applied"
    ):
        learner.learn(rollout, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.heads.parameters(), strict=True))


def test_frozen_restores_also_after_an_error(tiny_model: MakeModel) -> None:
    trunk = tiny_model().trunk
    first = next(trunk.parameters()).requires_grad_(False)
    with frozen(trunk):
        assert not any(parameter.requires_grad for parameter in trunk.parameters())
    with pytest.raises(KeyError), frozen(trunk):
        raise KeyError
    assert not first.requires_grad
    assert sum(parameter.requires_grad for parameter in trunk.parameters()) == len(list(trunk.parameters())) - 1


def test_sensitivity_is_of_the_first_episodes_also_with_features_at_hand(
    hand_rollout: MakeRollout, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four episodes two are measured; their features come first among those of all."""
    monkeypatch.setattr(world_learning, "_MEASURED_EPISODES", 2)
    rows = [{"prompt": [2, 3], "actions": [n, 6 - n, n], "rewards": [0] * 3, "end": "truncated"} for n in range(2, 6)]
    model, rollout = tiny_model(), hand_rollout(rows, steps=3, length=5)
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
    first = rollout.select(torch.arange(2))

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    assert torch.randperm(2, generator=seeded()).tolist() == [1, 0]
    name = "world_model/action_shuffle_loss_ratio"
    expected = learner.measure(first, seeded())[name]
    assert abs(expected - 1) > 1e-4
    assert learner.measure(rollout, seeded(), features)[name] == pytest.approx(expected, abs=1e-6)


def test_sensitivity_reads_the_text_with_one_pass_of_the_trunk(
    hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    """The trunk reads the real text in both measurements, the heads the permuted one in the second alone."""
    seed = next(s for s in range(9) if torch.randperm(2, generator=torch.Generator().manual_seed(s))[0] == 1)
    model, rollout = tiny_model(), two_rows(hand_rollout)
    with torch.no_grad():  # at their initialisation the heads hardly see the actions
        for parameter in model.heads.parameters():
            parameter.mul_(3.0)
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    read: list[Tensor] = []
    hook = model.trunk.base_model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"]), with_kwargs=True
    )
    metrics = learner.measure(rollout, torch.Generator().manual_seed(seed))
    hook.remove()
    assert len(read) == 1
    assert torch.equal(read[0], rollout.input_ids)

    permuted = rollout.input_ids[torch.randperm(2, generator=torch.Generator().manual_seed(seed))]
    assert not torch.equal(permuted, rollout.input_ids)
    means = []
    with torch.no_grad():
        features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
        chosen = action_mask(rollout)
        for text in (rollout.input_ids, permuted):
            latents = model.latents(text, rollout.attention_mask, features=features)
            by_depth = []
            for depth in (2, 3):
                # Latent i of depth k is asked for token i + k, where the policy wrote that.
                logits = model.logits_of(latents[depth - 1][:, :-depth], depth)
                right = rollout.input_ids[:, depth:]
                ce = -logits.log_softmax(-1).gather(2, right[..., None])[..., 0]
                by_depth.append(ce[chosen[:, depth:]].mean())
            means.append(torch.stack(by_depth).mean())
    expected = float(means[1] / means[0])
    assert abs(expected - 1) > 1e-3
    assert metrics["world_model/action_shuffle_loss_ratio"] == pytest.approx(expected, rel=1e-5)
