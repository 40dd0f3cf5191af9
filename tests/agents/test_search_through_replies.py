"""``imagination=search`` that goes on through replies: exact gradients in an enumerable conversation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.imagined_returns import acted_states
from worldmtp.agents.imagination.search import SearchAdvantages, improved_policy
from worldmtp.agents.ppo import PolicyStats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.search_config import SearchTargetConfig
from worldmtp.agents.turns import turns_before
from worldmtp.dynamics import acting_policy
from worldmtp.dynamics.conversations import Answered
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.objective.policy_losses import improved_kl_per_token
from worldmtp.search import ConversationDynamics, SearchConfig
from worldmtp.search.q_transforms import completed_in_range

Text = tuple[int, ...]
OPENING, SAYS, HEARS = 4, (0, 1), (2, 3)
"""The prompt is token 4; the policy says 0 or 1, a turn each, and hears 2 or 3; there are two turns."""
NUM_TURNS, VOCAB = 2, 5


def texts() -> list[Text]:
    """Return every text in which the policy is to speak, or has spoken last, or which is over."""
    found: list[Text] = [(OPENING,)]
    for text in found:
        if len(text) < 1 + 2 * NUM_TURNS:
            found += [(*text, token) for token in (SAYS if len(text) % 2 else HEARS)]
    return found


TEXTS = texts()
NUMBER = {text: number for number, text in enumerate(TEXTS)}


@dataclass(frozen=True)
class Law:
    """What is answered to texts in which the policy has spoken last, in tenths, and what is paid with each answer."""

    tenths: dict[Text, int]
    """Of hearing 2; else 3 is heard."""
    paid: dict[Text, float]

    @classmethod
    def drawn(cls, seed: int) -> "Law":
        """Return a random one."""
        generator = np.random.default_rng(seed)
        spoken = [text for text in TEXTS if len(text) % 2 == 0]
        heard = [text for text in TEXTS if len(text) % 2 and len(text) > 1]
        return cls(
            {text: int(generator.integers(1, 10)) for text in spoken}, {text: generator.random() for text in heard}
        )

    def answers(self, spoken: Text) -> Iterator[tuple[float, Text]]:
        """Yield the probability of each answer, and the text with it."""
        for tenths, token in zip((self.tenths[spoken], 10 - self.tenths[spoken]), HEARS, strict=True):
            yield tenths / 10, (*spoken, token)

    def values(self, policy: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of all texts, and of each action, by the probabilities ``policy[text, action]``."""
        values = torch.zeros(len(TEXTS), dtype=torch.float64)
        of_actions = torch.zeros(len(TEXTS), len(SAYS), dtype=torch.float64)
        for text in reversed(TEXTS):
            if len(text) % 2 and len(text) < 1 + 2 * NUM_TURNS:
                for action in SAYS:
                    told = self.answers((*text, action))
                    of_actions[NUMBER[text], action] = sum(p * (self.paid[t] + values[NUMBER[t]]) for p, t in told)
                values[NUMBER[text]] = (policy[NUMBER[text]] * of_actions[NUMBER[text]]).sum()
        return values, of_actions

    def episodes(self) -> Iterator[tuple[float, list[Text]]]:
        """Yield the world's part of each episode's probability, and the texts that the policy was to go on with."""

        def go_on(prob: float, path: list[Text]) -> Iterator[tuple[float, list[Text]]]:
            if len(path) > NUM_TURNS:
                yield prob, path
                return
            for action in SAYS:
                for p, text in self.answers((*path[-1], action)):
                    yield from go_on(prob * p, [*path, text])

        return go_on(1.0, [(OPENING,)])


@dataclass(frozen=True)
class Known(StateTable):
    """Texts by their number."""

    number: Int[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        """The number."""
        return self.number[:, None].double()


class ByText:
    """A policy by table: its logits and values of each text."""

    action_conditional, max_horizon, models_replies = True, None, False

    def __init__(self, logits: Float[Tensor, "text action"], values: Float[Tensor, " text"]) -> None:
        self._logits = torch.nn.functional.pad(logits, (0, VOCAB - len(SAYS)), value=-torch.inf)
        self._values = values

    def encode(self, input_ids: Tensor, mask: Tensor, rows: Tensor, positions: Tensor, *_: Any) -> Known:
        """Look the prefixes up."""
        prefixes = [tuple(input_ids[row, : at + 1].tolist()) for row, at in zip(rows, positions.tolist(), strict=True)]
        return Known(torch.tensor([NUMBER[text] for text in prefixes]))

    def step(self, state: Known, tokens: Tensor) -> Known:
        """Append; nobody asks what follows the end of a conversation."""
        longer = [(*TEXTS[n], token) for n, token in zip(state.number.tolist(), tokens.tolist(), strict=True)]
        return Known(torch.tensor([NUMBER[text] for text in longer]))

    def predict(self, state: Known, with_logits: bool = True) -> Prediction:
        """Read the tables; the policy's own rewards and ends are wrong here, so that nobody may ask them."""
        wrong = torch.full((len(state),), 7.0).double()
        return Prediction(self._logits[state.number], wrong, wrong, self._values[state.number])


@dataclass(frozen=True)
class Asked(StateTable):
    """Whose conversation, and its text."""

    row: Int[Tensor, " state"]
    number: Int[Tensor, " state"]


class InShares:
    """Answers by a law, of each ten that a row asks for one text as many as there are tenths: expectations exactly."""

    max_reply = 1

    def __init__(self, law: Law) -> None:
        self._law, self._asked = law, dict[tuple[int, Text], int]()

    def begin(self, turns: Turns, rows: Tensor) -> Asked:
        """Return where the conversations stand."""
        numbers = []
        for row in range(len(turns)):
            text: Text = tuple(turns.opening[row].tolist())
            for turn in range(int(turns.num_turns[row])):
                text += (int(turns.said[row, turn, 0]), int(turns.replies[row, turn, 0]))
            numbers.append(NUMBER[text])
        return Asked(torch.arange(len(turns)), torch.tensor(numbers))

    def turns_left(self, heard: Asked) -> Tensor:
        """Return those of two."""
        return torch.tensor([NUM_TURNS - (len(TEXTS[number]) - 1) // 2 for number in heard.number.tolist()])

    def answer(self, heard: Asked, said: Tensor, generator: torch.Generator) -> tuple[Asked, Answered]:
        """Return where it leads."""
        after = []
        for row, number, token in zip(heard.row.tolist(), heard.number.tolist(), said[:, 0].tolist(), strict=True):
            spoken = (*TEXTS[number], token)
            turn = self._asked[row, spoken] = self._asked.get((row, spoken), -1) + 1
            after.append((*spoken, HEARS[turn % 10 >= self._law.tenths[spoken]]))
        numbers = torch.tensor([NUMBER[text] for text in after])
        rewards = torch.tensor([self._law.paid[text] for text in after], dtype=torch.float64)
        ended = torch.tensor([len(text) > 2 * NUM_TURNS for text in after])
        return Asked(heard.row, numbers), Answered(numbers.new_tensor([[text[-1]] for text in after]), rewards, ended)


class Conversations:
    """A ``SearchedWorld`` of them."""

    def __init__(self, inner: ByText, law: Law) -> None:
        self.inner, self.policy, self._law = inner, acting_policy(1.0), law
        self.is_ready, self.calls = True, list[str]()

    def begin(self, rollout: Rollout, states: Any, rows: Tensor, steps: Tensor) -> tuple[ConversationDynamics, Any]:
        """Return conversations as they stood, read off the rollout."""
        self.calls.append("begin")
        source = InShares(self._law)
        turns, said = turns_before(rollout, rows, steps, eos_id=VOCAB, max_turn=1, max_new=4, longest=1)
        dynamics = ConversationDynamics(self.inner, source, VOCAB, 1, torch.Generator())
        room = 4 - 2 * steps
        return dynamics, dynamics.begin(states, source.begin(turns, rows), said, room, NUM_TURNS - steps)

    def observe(self, rollout: Rollout) -> None:
        """Note it."""
        self.calls.append("observe")

    def learn(self) -> dict[str, float]:
        """Say so."""
        return {"learnt": 1.0}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read nothing."""


class EveryConversation:
    """All episodes in one batch, and a search of a world that is right or wrong of replies, rewards and values."""

    def __init__(self, make: Callable[..., Rollout], wrong: bool, **options: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        self.law = Law.drawn(0)
        self.logits = torch.randn(len(TEXTS), len(SAYS), generator=generator).double().requires_grad_(True)
        values = self.law.values(self.logits.detach().softmax(dim=1))[0]
        if wrong:
            values = torch.rand(len(TEXTS), generator=generator).double()
        episodes = list(self.law.episodes())
        self.at = torch.tensor([[NUMBER[text] for text in path[:-1]] for _, path in episodes])
        self.actions = torch.tensor([path[-1][1::2] for _, path in episodes])
        taken = self.taken()
        chance = torch.tensor([prob for prob, _ in episodes], dtype=torch.float64)
        self.probs = chance * taken.sum(dim=1).exp()
        self.rewards = torch.tensor([[self.law.paid[text] for text in path[1:]] for _, path in episodes]).double()
        rows = [
            {
                "prompt": [OPENING],
                "actions": list(path[-1][1::2]),
                "wrote": [[token] for token in path[-1][2::2]],
                "rewards": [0.0] * NUM_TURNS,
                "end": "terminated",
            }
            for _, path in episodes
        ]
        rollout = make(rows, NUM_TURNS, 1 + 2 * NUM_TURNS)
        self.rollout = replace(rollout, rewards=self.rewards, logprobs=taken.detach())
        self.world = Conversations(ByText(self.logits.detach(), values), Law.drawn(1) if wrong else self.law)
        # Two tokens, each looked at half of the times: whatever the noise, rows that share a prefix find the same.
        search = SearchTargetConfig(
            num_simulations=20, num_states=10**6, width=2, num_considered=2, gated=False, gate_batches=2, **options
        )
        config = ImaginationConfig(use="search", horizon=2, search=search)
        ppo = PPOConfig(gae_lambda=1.0, scale_advantages=False)
        self.estimator = SearchAdvantages(self.world, (0.0, 2.0), config, ppo, generator)

    def taken(self) -> Tensor:
        return self.logits.log_softmax(dim=1)[self.at].gather(2, self.actions[..., None])[..., 0]

    def exact(self) -> Tensor:
        """The gradient of the expected return over all episodes."""
        (gradient,) = torch.autograd.grad((self.probs * self.rewards.sum(dim=1)).sum(), self.logits, retain_graph=True)
        return gradient

    def plan(self) -> Any:
        stats = PolicyStats(torch.zeros(len(self.rollout), NUM_TURNS + 1).double(), self.rollout.logprobs)
        for _ in range(2):  # the gate waits
            plan, metrics = self.estimator.estimate(self.rollout, stats)
            assert (plan.improved, metrics["imagination/gate_open"]) == (None, 0)
        return self.estimator.estimate(self.rollout, stats)[0]

    def gradient(self, plan: Any) -> Tensor:
        """The gradient of the expected loss, its sign turned; the ratio is one."""
        ids, improved, weight = plan.improved
        live = self.logits.log_softmax(dim=1)[self.at].gather(2, ids[..., :-1])
        kl = improved_kl_per_token(torch.cat([live, torch.full_like(live[..., :1], -torch.inf)], dim=-1), improved)
        taken = self.taken()
        per_step = plan.advantages * (taken - taken.detach()).exp() - weight * kl
        total = (self.probs.detach() * per_step.sum(dim=1)).sum()
        (gradient,) = torch.autograd.grad(total, self.logits, retain_graph=True)
        return gradient


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("coef", [0.3, 5.0])
def test_corrected_the_expected_gradient_is_the_policy_gradient(
    wrong: bool, coef: float, hand_rollout: Callable[..., Rollout]
) -> None:
    case = EveryConversation(hand_rollout, wrong, coef=coef, corrected=True)
    assert float(case.probs.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    plan = case.plan()
    assert float(plan.improved_logprobs.exp().amax(dim=-1).max()) > 0.5  # the search has an opinion
    torch.testing.assert_close(case.gradient(plan), case.exact(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("wrong", [False, True])
def test_uncorrected_it_is_biased(wrong: bool, hand_rollout: Callable[..., Rollout]) -> None:
    """By right replies towards what is worth more: the value rises along the bias, by its first order."""
    case = EveryConversation(hand_rollout, wrong, coef=1.0)
    bias = case.gradient(case.plan()) - case.exact()
    assert float(bias.abs().max()) > 0.01
    rises = float((bias * case.exact()).sum())
    assert rises > 0.0 if not wrong else rises != 0.0


def test_with_exact_replies_a_search_of_one_turn_finds_the_advantages(hand_rollout: Callable[..., Rollout]) -> None:
    """Each token is answered ten times, in the shares of the law: Q is exact, and so is what pi' is made of."""
    case = EveryConversation(hand_rollout, False)
    rows, steps = torch.nonzero(case.rollout.step_mask, as_tuple=True)
    states = acted_states(case.world.inner, case.rollout)
    dynamics, roots = case.world.begin(case.rollout, states, rows, steps)
    transform = partial(completed_in_range, low=0.0, high=2.0)
    found = improved_policy(
        dynamics, roots, case.world.policy, SearchConfig(20, 1, 2), transform, 2, torch.Generator().manual_seed(0)
    )
    policy = case.logits.detach().softmax(dim=1)
    values, of_actions = case.law.values(policy)
    at = case.at.flatten()
    expected = (of_actions - values[:, None])[at].gather(1, found.ids[:, :2])
    torch.testing.assert_close(found.advantages[:, :2], expected, atol=1e-12, rtol=0)
    improved = torch.zeros_like(policy)[at].scatter(1, found.ids[:, :2], found.logprobs[:, :2].exp())
    assert bool(((improved * of_actions[at]).sum(dim=1) >= values[at]).all())


def test_a_batch_is_searched_before_it_is_heard(hand_rollout: Callable[..., Rollout]) -> None:
    """What the world learns of it knows the actions; before there is anything to ask, nothing is searched."""
    case = EveryConversation(hand_rollout, False)
    stats = PolicyStats(torch.zeros(len(case.rollout), NUM_TURNS + 1).double(), case.rollout.logprobs)
    case.world.is_ready = False
    assert "imagination/search_skill" not in case.estimator.estimate(case.rollout, stats)[1]
    case.world.is_ready = True
    assert "imagination/search_skill" in case.estimator.estimate(case.rollout, stats)[1]
    assert case.world.calls == ["observe", "begin", "observe"]
    assert case.estimator.learn() == {"learnt": 1.0}


def test_what_was_said_and_heard_before_each_step_by_hand(hand_rollout: Callable[..., Rollout]) -> None:
    """Turns of two tokens at most, which token 1 ends: 3 4 | 5 6 | 1 | | 3, and a text that was cut in its reply."""
    rows = [
        {
            "prompt": [2],
            "actions": [3, 4, 1, 3],
            "wrote": [[], [5, 6], [], []],
            "rewards": [0.0] * 4,
            "end": "truncated",
        },
        {"prompt": [7, 8], "actions": [1, 1], "wrote": [[5], [5]], "rewards": [0.0] * 2, "end": "truncated"},
    ]
    rollout = hand_rollout(rows, 4, 7)
    at = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0, 1])
    turns, still = turns_before(rollout, *at, eos_id=1, max_turn=2, max_new=4, longest=2)
    n = NOTHING
    assert turns.opening.tolist() == [[2, n]] * 4 + [[7, 8]] * 2
    assert turns.num_turns.tolist() == [0, 0, 1, 2, 0, 1]
    assert still.tolist() == [[n, n], [3, n], [n, n], [n, n], [n, n], [n, n]]
    assert turns.said[2:4].tolist() == [[[3, 4], [n, n]], [[3, 4], [1, n]]]
    assert turns.replies[2:4].tolist() == [[[5, 6], [n, n]], [[5, 6], [n, n]]]
    assert (turns.said[5].tolist(), turns.replies[5].tolist()) == ([[1, n], [n, n]], [[5, n], [n, n]])
