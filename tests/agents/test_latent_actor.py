"""What ``imagination=latent`` makes of imagined rollouts: by hand, and in an enumerable token MDP in float64.

In the MDP every path there is stands in one batch, weighted by the probability that it is sampled with, so that the
weighted sum *is* the expectation, and its gradient can be compared with the enumerated policy gradient to rounding.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmtp.agents.imagination.latent_actor import action_skill, actor_targets, imagined_rows, rule_ends
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import (
    ExactWorldModel,
    ImaginedRollout,
    Prediction,
    ShuffledWorldModel,
    StateTable,
    TokenMDP,
    TurnRoom,
    acting_policy,
)
from worldmtp.objective.policy_losses import policy_loss_per_token

WIDE = (-1e6, 1e6)
EOS = 1


def by_hand(**fields: Any) -> ImaginedRollout:
    """One rollout of three steps: rewards .1 .2 .4, continuations .5 .8 .9, values 1 2 3 4."""
    made = {
        "actions": torch.tensor([[2, 3, 4]]),
        "logprobs": torch.log(torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64)),
        "entropies": torch.zeros((1, 3), dtype=torch.float64),
        "rewards": torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64),
        "continuations": torch.tensor([[0.5, 0.8, 0.9]], dtype=torch.float64),
        "alive": torch.tensor([[1.0, 0.5, 0.4]], dtype=torch.float64),
        "values": torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64),
        "in_turn": torch.ones((1, 3), dtype=torch.bool),
    }
    return ImaginedRollout(**made | fields)


def nothing_ends() -> Tensor:
    return torch.zeros((1, 3), dtype=torch.bool)


def test_lambda_returns_by_hand() -> None:
    """On-policy, lambda .5, gamma 1.

    G_2 = .4 + .9 * 4 = 4.0; G_1 = .2 + .8 (.5 * 3 + .5 * 4.0) = 3.0; G_0 = .1 + .5 (.5 * 2 + .5 * 3.0) = 1.35.
    Less the values 1 2 3 and times the probability of being alive: .35, 1.0 * .5, 1.0 * .4.
    """
    imagined = by_hand()
    targets = actor_targets(imagined, imagined.logprobs, nothing_ends(), 1.0, 0.5, WIDE)
    torch.testing.assert_close(targets.returns, torch.tensor([[1.35, 3.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(targets.advantages, torch.tensor([[0.35, 0.5, 0.4]], dtype=torch.float64))


def test_a_known_end_stops_value_whatever_the_model_says() -> None:
    """After action 1 the rules end the episode: G_1 = .2, G_0 = .1 + .5 (.5 * 2 + .5 * .2) = .65."""
    imagined = by_hand(
        in_turn=torch.tensor([[True, True, False]]),
        rewards=torch.tensor([[0.1, 0.2, 0.0]], dtype=torch.float64),
        continuations=torch.tensor([[0.5, 0.8, 1.0]], dtype=torch.float64),
    )
    ends = torch.tensor([[False, True, False]])
    targets = actor_targets(imagined, imagined.logprobs, ends, 1.0, 0.5, WIDE)
    torch.testing.assert_close(targets.returns[:, :2], torch.tensor([[0.65, 0.2]], dtype=torch.float64))
    assert targets.weights.tolist() == [[1.0, 0.5, 0.0]], "there is no third action"


def test_gamma_and_the_range_of_returns() -> None:
    """Gamma .5, lambda 0: .1 + .25 * 2, .2 + .4 * 3, .4 + .45 * 4 = .6, 1.4, 2.2; none may exceed 1.5."""
    imagined = by_hand()
    targets = actor_targets(imagined, imagined.logprobs, nothing_ends(), 0.5, 0.0, (0.0, 1.5))
    torch.testing.assert_close(targets.returns, torch.tensor([[0.6, 1.4, 1.5]], dtype=torch.float64))


def test_off_policy_weights_and_traces_by_hand() -> None:
    """Pi = .5 .25 .4 where q = .5 .5 .1: ratios 1, .5, 4.

    Weights min(1, 1, .5, 2) times alive 1, .5, .4. Lambda is traced by .5 and 1: G_2 = 4.0, G_1 = .2 + .8 * 4.0 = 3.4,
    G_0 = .1 + .5 (.5 * 2 + .5 * 3.4) = 1.45.
    """
    imagined = by_hand(logprobs=torch.log(torch.tensor([[0.5, 0.5, 0.1]], dtype=torch.float64)))
    own = torch.log(torch.tensor([[0.5, 0.25, 0.4]], dtype=torch.float64))
    targets = actor_targets(imagined, own, nothing_ends(), 1.0, 1.0, WIDE)
    torch.testing.assert_close(targets.weights, torch.tensor([[1.0, 0.25, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(targets.returns, torch.tensor([[1.45, 3.4, 4.0]], dtype=torch.float64))


def test_ends_by_the_rules() -> None:
    """Rooms of 3 and 2 tokens; the first row says EOS second, the second uses its budget up."""
    actions = torch.tensor([[2, EOS, 3], [2, 3, 4]])
    room = TurnRoom(EOS, torch.tensor([3, 2]))
    assert rule_ends(actions, room, False).tolist() == [[False, True, True], [False, True, False]]
    assert rule_ends(actions, room, True).tolist() == [[False, True, False], [False, False, False]]


def test_rows_by_hand(hand_rollout: Callable[..., Rollout]) -> None:
    """From step 1 of (5 6 | 2 3 EOS): the prefix 5 6 2, then 4 EOS; a third imagined token comes too late."""
    real = hand_rollout(
        [{"prompt": [5, 6], "actions": [2, 3, EOS], "rewards": [0.0, 0.0, 1.0], "end": "terminated"}],
        steps=4,
        length=7,
    )
    imagined = by_hand(actions=torch.tensor([[4, EOS, 3]]), in_turn=torch.tensor([[True, True, False]]))
    rows = imagined_rows(real, torch.tensor([1]), imagined, EOS)
    assert rows.input_ids.tolist() == [[5, 6, 2, 4, EOS, 0, 0]]
    assert rows.attention_mask.tolist() == [[True] * 5 + [False] * 2]
    assert rows.action_index[:, :2].tolist() == [[3, 4]]
    assert rows.actions[:, :2].tolist() == [[4, EOS]]
    assert rows.step_mask.tolist() == [[True, True, False, False]]
    assert rows.terminated.tolist() == [[False, True, False, False]]
    assert not rows.truncated.any()
    torch.testing.assert_close(rows.rewards, torch.tensor([[0.1, 0.2, 0.0, 0.0]]))


def test_a_row_that_imagination_leaves_open_is_truncated(hand_rollout: Callable[..., Rollout]) -> None:
    """From step 0 a horizon of three fills the three places of the step axis; the fourth does not exist."""
    real = hand_rollout(
        [{"prompt": [5, 6], "actions": [2, EOS], "rewards": [0.0, 1.0], "end": "terminated"}], steps=2, length=4
    )
    imagined = by_hand(in_turn=torch.tensor([[True, True, False]]))
    rows = imagined_rows(real, torch.tensor([0]), imagined, EOS)
    assert rows.input_ids.tolist() == [[5, 6, 2, 3]]
    assert rows.truncated.tolist() == [[False, True]]
    assert not rows.terminated.any()


class Paths:
    """All paths of ``horizon`` tokens from the root of a token MDP, with what the true world says of them.

    The acting policy is tabular; the paths are sampled by another one, as heads differ from their trunk.
    """

    def __init__(
        self, horizon: int, eos: int | None = None, off_policy: float = 0.0, rewards_late: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        vocab, length = 3, 3
        num_prefixes = sum(vocab**n for n in range(length))

        def randn() -> Tensor:
            return torch.randn((num_prefixes, vocab), generator=generator, dtype=torch.float64)

        self.mdp = TokenMDP(vocab, length, randn(), eos)
        self.logits = randn().requires_grad_(True)
        sampled_by = (self.logits + off_policy * randn()).detach()
        world = ExactWorldModel(self.mdp, self.logits.detach())
        self.actions = torch.tensor(list(itertools.product(range(vocab), repeat=horizon)))
        nothing = torch.zeros((len(self.actions), 1), dtype=torch.long)
        state = world.encode(nothing, nothing.bool(), *self._roots())
        columns: dict[str, list[Tensor]] = {"reward": [], "continuation": [], "value": [world.predict(state).value]}
        own, theirs, inside = [], [], []
        ended = torch.zeros(len(self.actions), dtype=torch.bool)
        for step in range(horizon):
            action = self.actions[:, step, None]
            own.append(self.logits.log_softmax(-1)[state.prefixes].gather(1, action)[:, 0])
            theirs.append(sampled_by.log_softmax(-1)[state.prefixes].gather(1, action)[:, 0])
            inside.append(~ended)
            state = world.step(state, action[:, 0])
            for name, values in columns.items():
                values.append(getattr(world.predict(state), name))
            ended = state.ended
        self.in_turn = torch.stack(inside, dim=1)
        self.own, self.theirs = torch.stack(own, dim=1), torch.stack(theirs, dim=1).where(self.in_turn, 0.0)
        rewards = torch.stack(columns["reward"], dim=1)
        if rewards_late:
            rewards = rewards.roll(1, dims=1)
        continued = torch.stack(columns["continuation"], dim=1)
        self.imagined = ImaginedRollout(
            actions=self.actions,
            logprobs=self.theirs,
            entropies=torch.zeros_like(self.theirs),
            rewards=rewards,
            continuations=continued,
            alive=torch.cat([torch.ones_like(continued[:, :1]), continued[:, :-1]], dim=1).cumprod(dim=1),
            values=torch.stack(columns["value"], dim=1),
            in_turn=self.in_turn,
        )

    def _roots(self) -> tuple[Tensor, Tensor]:
        """The empty prefix, as often as there are paths."""
        return torch.arange(len(self.actions)), torch.full((len(self.actions),), -1)

    def gradient(self, lambda_: float, most: float = math.inf) -> Tensor:
        """The expected gradient of the objective, by the loss that PPO has."""
        own = self.own.where(self.in_turn, 0.0)
        # Paths that differ only after their end are one path.
        first = ~self.in_turn & (self.actions != 0)
        once = ~first.any(dim=1)
        targets = actor_targets(self.imagined, own.detach(), torch.zeros_like(self.in_turn), 1.0, lambda_, WIDE, most)
        loss = policy_loss_per_token(own, own.detach(), targets.advantages, 0.2).sum(dim=1)
        weight = self.theirs.sum(dim=1).exp() * once
        assert float(weight.sum()) == pytest.approx(1)
        (gradient,) = torch.autograd.grad(-(weight * loss).sum(), self.logits)
        return gradient

    def exact(self, horizon: int) -> Tensor:
        """The policy gradient of the return of ``horizon`` tokens and then the value there, as it is now.

        It is that of the prefixes shorter than the horizon: those deeper do not act.
        """
        gradient = self.mdp.policy_gradient(self.logits.detach())
        num_acting = sum(self.mdp.vocab_size**n for n in range(horizon))
        return torch.cat([gradient[:num_acting], torch.zeros_like(gradient[num_acting:])])


@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("off_policy", [0.0, 1.0])
def test_with_a_true_world_the_expected_gradient_is_exact_whoever_samples(
    horizon: int, eos: int | None, lambda_: float, off_policy: float
) -> None:
    """Of the return to the horizon; at three tokens, the whole episode, it is the gradient of the real objective."""
    paths = Paths(horizon, eos, off_policy)
    torch.testing.assert_close(paths.gradient(lambda_), paths.exact(horizon), atol=1e-8, rtol=0)


def test_the_cut_at_one_is_exact_on_policy_and_biased_off_it() -> None:
    assert float((Paths(3).gradient(0.95, 1.0) - Paths(3).exact(3)).abs().max()) < 1e-8
    off = Paths(3, off_policy=1.0)
    gradient, exact = off.gradient(0.95, 1.0), off.exact(3)
    assert float((gradient - exact).abs().max()) > 0.01
    assert float((gradient * exact).sum() / gradient.norm() / exact.norm()) > 0.8, "it still points that way"


def test_a_one_step_shift_of_the_rewards_is_caught() -> None:
    paths = Paths(3, rewards_late=True)
    assert float((paths.gradient(1.0) - paths.exact(3)).abs().max()) > 0.01


def test_a_one_step_shift_of_the_continuations_is_caught() -> None:
    paths = Paths(3, eos=1)
    late = paths.imagined.continuations.roll(1, dims=1)
    object.__setattr__(paths.imagined, "continuations", late)
    # With true values and rewards an end is known by them too, so values are those of a critic that ignores it.
    object.__setattr__(paths.imagined, "values", paths.imagined.values + 1.0)
    assert float((paths.gradient(1.0) - paths.exact(3)).abs().max()) > 0.01


# The skill that opens the gate


@dataclass(frozen=True)
class LastToken(StateTable):
    """A text by its last token."""

    token: Tensor

    @property
    def latent(self) -> Tensor:
        return self.token[:, None].float()


class KnownWorld:
    """A world in which a text is worth what ``worth`` says of its last token; its policy is uniform over four."""

    action_conditional = True
    max_horizon = None
    models_replies = False

    def __init__(self, worth: Tensor) -> None:
        self._worth = worth

    def encode(
        self,
        input_ids: Any,
        attention_mask: Any,
        root_rows: Any = None,
        root_positions: Any = None,
        features: Any = None,
    ) -> Any:
        return LastToken(input_ids[:, -1])

    def step(self, state: LastToken, tokens: Tensor) -> LastToken:
        return LastToken(tokens)

    def predict(self, state: LastToken, with_logits: bool = True) -> Prediction:
        value = self._worth[state.token]
        zeros = torch.zeros_like(value)
        return Prediction(zeros[:, None].expand(-1, 4) if with_logits else None, zeros, zeros + 1, value)


def skill_of(world: Any, returns_of: Callable[[Tensor], Tensor], number: int = 2000, horizon: int = 2) -> float:
    generator = torch.Generator().manual_seed(0)
    start = LastToken(torch.zeros(number, dtype=torch.long))
    actions = torch.randint(4, (number, horizon), generator=generator)
    inside = torch.ones_like(actions, dtype=torch.bool)
    returns = returns_of(actions)
    return action_skill(world, start, actions, inside, returns, acting_policy(1.0), 1.0, generator)


def test_skill_is_positive_for_the_true_worth_and_negative_for_its_opposite() -> None:
    """One step: Q(a) - Q(a') = w_a - w_a', G - V = w_a - c: the correlation of a - b with a, 1 / sqrt 2."""
    worth = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert skill_of(KnownWorld(worth), lambda actions: worth[actions], horizon=1) == pytest.approx(0.707, abs=0.03)
    assert skill_of(KnownWorld(-worth), lambda actions: worth[actions], horizon=1) < -0.6


class PayingWorld(KnownWorld):
    """The same worth, paid at once, after which nothing is worth anything."""

    def predict(self, state: LastToken, with_logits: bool = True) -> Prediction:
        said = super().predict(state, with_logits)
        return replace(said, reward=said.value, value=torch.zeros_like(said.value))


def test_skill_counts_what_is_paid_as_well_as_what_is_foreseen() -> None:
    worth = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert skill_of(PayingWorld(worth), lambda actions: worth[actions], horizon=1) == pytest.approx(0.707, abs=0.03)


class KnownState(KnownWorld):
    """A step of any token shows what the state was worth all along, which its value before did not know."""

    def step(self, state: LastToken, tokens: Tensor) -> LastToken:
        return LastToken(state.token % 10 + 10)

    def predict(self, state: LastToken, with_logits: bool = True) -> Prediction:
        value = torch.where(state.token < 10, 0.0, self._worth[state.token % 10])
        zeros = torch.zeros_like(value)
        return Prediction(zeros[:, None].expand(-1, 4) if with_logits else None, zeros, zeros + 1, value)


def test_knowing_the_state_and_no_token_is_no_skill() -> None:
    """Q(s, a) - V(s) is G - V(s) here, to the last bit; and there is nothing that a policy could learn from it."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(4, (500,), generator=generator)
    worth = torch.tensor([0.0, 0.3, 0.6, 1.0])
    actions = torch.randint(4, (500, 1), generator=generator)
    inside = torch.ones_like(actions, dtype=torch.bool)
    world = KnownState(worth)
    assert float((world.predict(world.step(LastToken(start), actions[:, 0])).value - worth[start]).abs().max()) == 0
    policy = acting_policy(1.0)
    assert action_skill(world, LastToken(start), actions, inside, worth[start][:, None], policy, 1.0, generator) == 0


def test_a_world_stepped_by_other_tokens_has_no_skill() -> None:
    """Never its own token: here the wrong one of two worths is likelier, so skill is negative if anything."""
    worth = torch.tensor([0.0, 0.0, 1.0, 1.0])
    placebo = ShuffledWorldModel(KnownWorld(worth), torch.Generator().manual_seed(1), 4)  # type: ignore[type-var]
    assert skill_of(placebo, lambda actions: worth[actions]) < 0.05


def test_skill_at_every_depth_reads_its_own_return() -> None:
    """The second token alone is paid: a world that knows tokens has skill; its returns one step early have none."""
    worth = torch.tensor([0.0, 0.0, 1.0, 1.0])

    def second(actions: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(actions)), worth[actions[:, 1]]], dim=1)

    right = skill_of(KnownWorld(worth), second)
    shifted = skill_of(KnownWorld(worth), lambda actions: second(actions).roll(1, dims=1))
    assert right > 0.2
    assert shifted < right - 0.1
