"""The critic ladder: who serves, what is learnt, what is saved."""

import math

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig
from worldmtp.agents.imagination.critic import Rung, RungCritic, serving_rung


def make_rung(seed: int = 0, replay_batches: int = 4) -> Rung:
    config = ImaginationConfig(
        critic_hidden_size=8, critic_learning_rate=3e-2, critic_replay_iterations=replay_batches, slope_decay=0.5
    )
    return Rung(2, config, torch.Generator().manual_seed(seed))


def skilled(*measured: tuple[float, int]) -> list[Rung]:
    """Rungs whose skill averaged to a number over a count of batches."""
    rungs = []
    for skill, count in measured:
        rung = make_rung()
        for _ in range(count):
            rung.measure(skill, torch.ones(2), torch.ones(2))
        rungs.append(rung)
    return rungs


@pytest.mark.parametrize(
    ("measured", "serving"),
    [
        ([(0.0, 3), (0.0, 3)], None),  # no skill, no gate
        ([(-0.2, 3), (-0.1, 3)], None),
        ([(0.3, 3), (0.2, 3), (0.1, 3)], 0),  # those above are not better
        ([(0.3, 3), (0.2, 3), (0.4, 3)], 2),  # better than the best below, not only than the next
        ([(0.3, 3), (0.3, 3)], 0),  # a tie is not worth the cost
        ([(-0.1, 3), (0.1, 3)], 1),
        ([(0.9, 2), (0.1, 3)], 1),  # the first was measured too rarely
        ([(0.9, 2)], None),
    ],
)
def test_the_ladder(measured: list[tuple[float, int]], serving: int | None) -> None:
    assert serving_rung(skilled(*measured), min_batches=3) == serving


def test_measuring_takes_skill_and_slope_in() -> None:
    rung = make_rung()
    rung.measure(0.2, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    rung.measure(0.5, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert rung.num_measured == 2
    assert rung.skill.mean == pytest.approx((0.25 * 0.2 + 0.5 * 0.5) / 0.75)
    assert rung.slope.slope == pytest.approx(1.5 / 2.5)


def test_a_critic_learns_probabilities() -> None:
    """Feature (1, 0) wins 3 of 4, feature (0, 1) never: cross-entropy is least at 3/4 and 0."""
    rung, generator = make_rung(), torch.Generator().manual_seed(1)
    features = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    targets = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    rung.remember(features, targets)
    first = rung.train(1, 64, generator)
    rung.train(300, 64, generator)
    said = torch.sigmoid(rung.critic(torch.eye(2))).tolist()
    assert said[0] == pytest.approx(0.75, abs=0.12)
    assert said[1] < 0.1
    assert rung.train(1, 64, generator) < first


def test_without_memories_or_updates_nothing_moves() -> None:
    rung, generator = make_rung(), torch.Generator().manual_seed(1)
    before = [parameter.clone() for parameter in rung.critic.parameters()]
    assert rung.train(5, 64, generator) is None
    rung.remember(torch.ones((0, 2)), torch.ones(0))  # a batch whose taken tokens were all left out
    assert rung.train(5, 64, generator) is None
    rung.remember(torch.ones((2, 2)), torch.ones(2))
    assert rung.train(0, 64, generator) is None
    assert all(torch.equal(a, b) for a, b in zip(before, rung.critic.parameters(), strict=True))


def test_memories_beyond_capacity_are_forgotten() -> None:
    rung, generator = make_rung(replay_batches=1), torch.Generator().manual_seed(1)
    rung.remember(torch.full((1, 2), float("nan")), torch.ones(1))
    rung.remember(torch.ones((1, 2)), torch.ones(1))
    assert math.isfinite(rung.train(3, 4, generator))
    assert len(rung.state_dict()["replay"]) == 1


def test_a_restored_rung_goes_on_to_the_bit() -> None:
    whole, saved = make_rung(), make_rung()
    for rung in (whole, saved):
        rung.remember(torch.eye(2), torch.tensor([1.0, 0.0]))
        rung.measure(0.4, torch.ones(2), torch.ones(2))
        rung.train(3, 4, torch.Generator().manual_seed(2))
    restored = make_rung(seed=9)
    restored.load_state_dict(saved.state_dict())
    losses = [rung.train(3, 4, torch.Generator().manual_seed(3)) for rung in (whole, restored)]
    assert losses[0] == losses[1]
    for a, b in zip(whole.critic.parameters(), restored.critic.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (restored.skill, restored.slope, restored.num_measured) == (whole.skill, whole.slope, 1)


def test_a_critics_weights_come_from_its_generator() -> None:
    one, same = (RungCritic(3, 4, torch.Generator().manual_seed(0)) for _ in range(2))
    other = RungCritic(3, 4, torch.Generator().manual_seed(1))
    assert torch.equal(one.inner.weight, same.inner.weight)
    assert torch.equal(one.outer.weight, same.outer.weight)
    assert not torch.equal(one.inner.weight, other.inner.weight)
    assert one(torch.zeros((2, 5, 3))).tolist() == [[0.0] * 5] * 2  # no feature, no opinion: one half
