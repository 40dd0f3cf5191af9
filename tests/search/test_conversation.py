"""Searching on through what a world replies: lakes by dynamic programming, coins by hand, turns by their rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics import acting_policy
from worldmtp.dynamics.conversations import Answered
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.search import ConversationDynamics, SearchConfig, plan
from worldmtp.search.conversation import ConversationState

POLICY = acting_policy(1.0)
N = NOTHING
Law = Mapping[tuple[int, int], Sequence[tuple[float, int, float, bool]]]
"""By place and action: probability, next place, what is paid, whether it ends."""


@dataclass(frozen=True)
class LastToken(StateTable):
    """Texts of which the last token is all that matters."""

    token: Int[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        """The token."""
        return self.token[:, None].double()


class ByLastToken:
    """A policy that reads the last token alone: its logits and value there."""

    action_conditional, max_horizon, models_replies = True, None, False

    def __init__(self, logits: Float[Tensor, "vocab vocab"], values: Float[Tensor, " vocab"]) -> None:
        self._logits, self._values = logits, values

    def encode(self, input_ids: Tensor, *_: Any) -> LastToken:
        """Return the states of texts without padding."""
        return LastToken(input_ids[:, -1])

    def step(self, state: LastToken, tokens: Tensor) -> LastToken:
        """Append."""
        return LastToken(tokens)

    def predict(self, state: LastToken, with_logits: bool = True) -> Prediction:
        """Read the tables; the policy's own rewards and ends are wrong here, so that nobody may ask them."""
        wrong = torch.full((len(state),), 7.0).double()
        return Prediction(self._logits[state.token], wrong, wrong, self._values[state.token])


@dataclass(frozen=True)
class Place(StateTable):
    """Where conversations are."""

    number: Int[Tensor, " state"]


class FromPlaceNought:
    """Sources of which every conversation begins at place 0."""

    def begin(self, turns: Turns, rows: Tensor) -> Place:
        """Return that."""
        return Place(torch.zeros_like(rows))


class Tabled(FromPlaceNought):
    """Answers by a law; the reply to coming to place n is token ``first + n``, or ``say(n)``.

    The outcomes of a place and action come in the order of their probabilities' shares: of each ten visits to 8 : 1 : 1
    just eight, one and one, so that expectations are met exactly. Without ``in_shares`` they are drawn.
    """

    max_reply = 1

    def turns_left(self, heard: Place) -> Tensor:
        """Return as many as one likes."""
        return torch.full((len(heard),), 1000)

    def __init__(self, law: Law, first: int, in_shares: bool = False, says: Mapping[int, int] | None = None) -> None:
        self._law, self._first, self._in_shares, self._says = law, first, in_shares, says or {}
        self._asked: dict[tuple[int, int, int], int] = {}

    def answer(self, heard: Place, said: Tensor, generator: torch.Generator) -> tuple[Place, Answered]:
        """Return where it leads."""
        told = []
        for row, (place, action) in enumerate(zip(heard.number.tolist(), said[:, 0].tolist(), strict=True)):
            outcomes = self._law[place, action]
            probs = [outcome[0] for outcome in outcomes]
            if self._in_shares:
                key = (row, place, action)
                turn = self._asked[key] = self._asked.get(key, -1) + 1
                shares = [index for index, prob in enumerate(probs) for _ in range(round(10 * prob))]
                told.append(outcomes[shares[turn % 10]])
            else:
                told.append(outcomes[int(torch.multinomial(torch.tensor(probs), 1, generator=generator))])
        places = torch.tensor([outcome[1] for outcome in told])
        replies = torch.tensor([[self._says.get(one, self._first + one)] for one in places.tolist()])
        rewards = torch.tensor([outcome[2] for outcome in told], dtype=torch.float64)
        return Place(places), Answered(replies, rewards, torch.tensor([outcome[3] for outcome in told]))


def conversation(
    law: Law,
    num_actions: int,
    roots: Sequence[int],
    values: Sequence[float],
    **how: Any,
) -> tuple[ConversationDynamics, ConversationState]:
    """Turns of one token out of ``num_actions``, which the policy finds equally likely; one root a row."""
    vocab = num_actions + len(values)
    logits = torch.full((vocab, vocab), -torch.inf).double()
    logits[:, :num_actions] = 0.0
    inner = ByLastToken(logits, torch.tensor([0.0] * num_actions + list(values)).double())
    replies = Tabled(law, num_actions, **how)
    dynamics = ConversationDynamics(
        inner, replies, eos_id=vocab, max_turn=1, generator=torch.Generator().manual_seed(0)
    )
    at, many = torch.tensor(roots), torch.full((len(roots),), 1000)
    said = torch.full((len(roots), 1), N)
    return dynamics, dynamics.begin(LastToken(at + num_actions), Place(at), said, many, many)


MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))


def lake(rows: Sequence[str], success: float = 1.0) -> tuple[Law, list[int]]:
    """A frozen lake, and its fields where one stands: G pays 1 and ends, H ends; else one slips to either side."""
    width, law, standing = len(rows[0]), dict[tuple[int, int], list[tuple[float, int, float, bool]]](), []
    for place in range(len(rows) * width):
        row, column = divmod(place, width)
        if rows[row][column] in "GH":
            continue
        standing.append(place)
        for action in range(4):
            outcomes = []
            for turn, prob in ((0, success), (1, (1 - success) / 2), (-1, (1 - success) / 2)):
                down, right = MOVES[(action + turn) % 4]
                there = min(max(row + down, 0), len(rows) - 1), min(max(column + right, 0), width - 1)
                field = rows[there[0]][there[1]]
                if prob > 0:
                    outcomes.append((prob, there[0] * width + there[1], float(field == "G"), field in "GH"))
            law[place, action] = outcomes
    return law, standing


def optimal(law: Law, gamma: float, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Return V* and Q*, by value iteration to the end."""
    values, q_values = np.zeros(places), np.full((places, 4), -np.inf)
    for _ in range(400):
        for (place, action), outcomes in law.items():
            q_values[place, action] = sum(p * (r + gamma * values[to] * (not end)) for p, to, r, end in outcomes)
        values = np.array([max(row) if np.isfinite(row).all() else 0.0 for row in q_values])
    return values, q_values


POND = ("S.H", "..G")


def by_action(found: Any, values: Tensor) -> np.ndarray:
    return torch.zeros_like(values).scatter(1, found.tokens, values).numpy()


def test_a_lake_searched_to_its_end_is_the_known_optimum() -> None:
    """From every field, without any value to lean on; and no edge is worth more than dynamic programming says."""
    law, standing = lake(POND)
    values, q_values = optimal(law, 0.9, 6)
    assert values[0] == pytest.approx(0.9**2)  # three moves, by hand
    dynamics, roots = conversation(law, 4, standing, [0.0] * 6)
    found = plan("puct", dynamics, roots, POLICY, SearchConfig(64, max_depth=4, width=4, gamma=0.9))
    best = q_values[standing].max(axis=1)
    chosen = q_values[standing, found.actions.numpy()]
    np.testing.assert_allclose(chosen, best, atol=1e-12)
    # The mean over visits holds those that explored, so that it is below the optimum.
    assert (by_action(found, found.tree.root.q_values) <= q_values[standing] + 1e-12).all()


@pytest.mark.parametrize("rule", ["puct", "gumbel"])
def test_a_slippery_lake_is_backed_up_in_expectation(rule: str) -> None:
    """One move ahead with the optimal values at the leaves: r + gamma V*, the mean over 8 : 1 : 1, exactly."""
    law, standing = lake(POND, success=0.8)
    values, q_values = optimal(law, 0.9, 6)
    dynamics, roots = conversation(law, 4, standing, list(values), in_shares=True)
    config = SearchConfig(80, max_depth=1, width=4, gamma=0.9)
    found = plan(rule, dynamics, roots, POLICY, config)
    node = found.tree.root
    visits, q_found = by_action(found, node.child_visits), by_action(found, node.q_values)
    for row, place in enumerate(standing):
        for action in range(4):
            outcomes = law[place, action]
            worth = [reward + 0.9 * values[to] * (not end) for _, to, reward, end in outcomes]
            told = [one for one, (prob, *_) in zip(worth, outcomes, strict=True) for _ in range(round(10 * prob))]
            assert np.mean(told) == pytest.approx(q_values[place, action])
            number = int(visits[row, action])
            if number:
                heard = np.resize(told, number)  # round and round
                assert q_found[row, action] == pytest.approx(heard.mean(), abs=1e-12)
    assert (visits.max(axis=1) > 20).all()


COIN: Law = {(0, 0): [(1.0, 1, 0.6, True)], (0, 1): [(0.5, 2, 1.0, True), (0.5, 3, 0.0, True)]}
"""To be safe pays .6; to dare pays 1 or nothing."""


def test_a_coin_by_hand() -> None:
    """Heads for the first five throws of ten, then tails: of n <= 5 visits all have paid 1, of 10 five have."""
    dynamics, roots = conversation(COIN, 2, [0], [0.0] * 4, in_shares=True)
    found = plan("puct", dynamics, roots, POLICY, SearchConfig(40, width=2))
    node = found.tree.root
    visits, q_values = by_action(found, node.child_visits)[0], by_action(found, node.q_values)[0]
    heads = 5 * (visits[1] // 10) + min(visits[1] % 10, 5)
    assert q_values.tolist() == [pytest.approx(0.6), pytest.approx(heads / visits[1])]
    assert visits[1] > 5
    # Each face is a child of its own, visited as often as it fell.
    tree, slot = found.tree, found.tokens[0].tolist().index(1)
    of_coin = (tree.parents[0] == 0) & (tree.slots[0] == slot)
    assert sorted(tree.visits[0, of_coin].tolist()) == sorted([heads, visits[1] - heads])
    # .6 for certain is more than .5 on average, though less than the better face.
    many = plan("puct", *conversation(COIN, 2, [0], [0.0] * 4, in_shares=True), POLICY, SearchConfig(64, width=2))
    assert many.actions.tolist() == [0]
    assert float(by_action(many, many.tree.root.q_values)[0, 1]) == pytest.approx(0.5, abs=0.2)


def test_what_a_world_hides_is_drawn_anew_by_every_walk() -> None:
    """The first turn throws a coin in a cup, and the reply is the same; the second pays 1 for heads.

    A search that kept the coin of the first visit with the text would find 0 or 1 for certain.
    """
    law: Law = {(0, 0): [(0.5, 1, 0.0, False), (0.5, 2, 0.0, False)], (1, 0): [(1.0, 3, 1.0, True)]}
    law = {**law, (2, 0): [(1.0, 3, 0.0, True)]}
    dynamics, roots = conversation(law, 1, [0], [0.0] * 4, in_shares=True, says={1: 2, 2: 2})
    found = plan("puct", dynamics, roots, POLICY, SearchConfig(21, width=1))
    tree = found.tree
    assert tree.visits[0, :3].tolist() == [22, 21, 20]
    # The first visit ends at the cup; of the other twenty, throws 2 to 5 and 11 to 15 were heads, and the 21st.
    heads = 4 + 5 + 1
    assert float(tree.child_values[0, 1, 0]) == 0.0
    assert float(tree.child_rewards[0, 1, 0]) == pytest.approx(heads / 20)


@pytest.mark.parametrize("rule", ["puct", "gumbel"])
@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_is_left_to_chance_it_is_the_search_without_replies(
    rule: str, seed: int, make_problem: Callable[[int], Any], make_tables: type[Any]
) -> None:
    """The same table as a world model that says where a token leads, and as a world that replies with the place."""
    problem = make_problem(seed)
    states, actions = problem.logits.shape
    table = SimpleNamespace(**vars(problem))
    table.discounts = (problem.discounts > 0).astype(np.float64)
    plain = make_tables(table)
    # Where a token ends the episode the reply says nothing of values, and the table's are not asked either.
    law: Law = {
        (state, action): [
            (1.0, int(problem.following[state, action]), float(problem.rewards[state, action]), bool(end))
        ]
        for state, row in enumerate(table.discounts == 0)
        for action, end in enumerate(row)
    }
    vocab = actions + states
    logits = torch.full((vocab, vocab), -torch.inf).double()
    logits[:, :actions] = 0.0
    logits[actions:, :actions] = torch.from_numpy(problem.logits)
    inner = ByLastToken(logits, torch.cat([torch.zeros(actions).double(), torch.from_numpy(problem.values)]))
    generator = torch.Generator().manual_seed(0)
    dynamics = ConversationDynamics(inner, Tabled(law, actions), eos_id=vocab, max_turn=1, generator=generator)
    at, many = torch.from_numpy(problem.roots), torch.full((len(problem.roots),), 1000)
    roots = dynamics.begin(LastToken(at + actions), Place(at), torch.full((len(at), 1), N), many, many)
    config = SearchConfig(problem.num_simulations, problem.max_depth, width=actions, gamma=0.9)
    found, expected = plan(rule, dynamics, roots, POLICY, config), plan(rule, plain, plain.roots, POLICY, config)
    assert torch.equal(found.tree.child_visits, expected.tree.child_visits)
    assert torch.equal(found.tree.parents, expected.tree.parents)
    torch.testing.assert_close(found.tree.root.q_values, expected.tree.root.q_values, atol=1e-9, rtol=0)
    if not (table.discounts == 0).any():
        torch.testing.assert_close(found.value, expected.value, atol=1e-9, rtol=0)


class Seven(FromPlaceNought):
    """Answers every turn with 7 8, and pays it .25."""

    max_reply = 2

    def __init__(self, turns_left: int) -> None:
        self.heard: list[list[int]] = []
        self._turns_left = turns_left

    def turns_left(self, heard: Place) -> Tensor:
        """Return what was given."""
        return torch.full((len(heard),), self._turns_left)

    def answer(self, heard: Place, said: Tensor, generator: torch.Generator) -> tuple[Place, Answered]:
        """Return that."""
        self.heard += said.tolist()
        shape = (len(said),)
        reply = torch.tensor([7, 8]).expand(len(said), 2)
        answered = Answered(reply, torch.full(shape, 0.25).double(), torch.zeros(shape).bool())
        return Place(heard.number + 1), answered


class TestTurns:
    """Turns of two tokens at most; EOS is 9."""

    def begun(self, turns_left: int = 9, **limits: int) -> tuple[Seven, ConversationDynamics, ConversationState]:
        """One conversation with so much left."""
        inner = ByLastToken(torch.zeros(10, 10).double(), torch.arange(10).double())
        source, generator = Seven(turns_left), torch.Generator()
        dynamics = ConversationDynamics(inner, source, eos_id=9, max_turn=2, generator=generator)
        left = {"room": 9, "num_left": 9} | limits
        counts = {name: torch.tensor([number]) for name, number in left.items()}
        said = torch.full((1, 2), N)
        return source, dynamics, dynamics.begin(LastToken(torch.tensor([0])), Place(torch.tensor([0])), said, **counts)

    def told(self, dynamics: ConversationDynamics, state: ConversationState) -> tuple[float, float, float]:
        said = dynamics.predict(state)
        return float(said.reward), float(said.continuation), float(said.value)

    def test_a_turn_ends_with_its_last_token_or_with_eos(self) -> None:
        source, dynamics, state = self.begun()
        state = dynamics.step(state, torch.tensor([3]))
        assert self.told(dynamics, state) == (0.0, 1.0, 3.0)
        assert source.heard == []
        state = dynamics.step(state, torch.tensor([4]))
        # Answered, paid, and read to the reply's last token.
        assert self.told(dynamics, state) == (0.25, 1.0, 8.0)
        state = dynamics.step(state, torch.tensor([5]))
        assert self.told(dynamics, state) == (0.0, 1.0, 5.0)
        state = dynamics.step(state, torch.tensor([9]))
        assert source.heard == [[3, 4], [5, 9]]
        # Nine tokens of room, of which four and two replies of two are gone.
        assert (int(state.talk.room), int(state.talk.num_left), int(state.talk.turns_left)) == (1, 5, 7)

    @pytest.mark.parametrize(
        ("limits", "reply"), [({"room": 2}, [N, N]), ({"room": 3}, [7, N]), ({"num_left": 2}, [7, 8])]
    )
    def test_room_and_turns_end_a_conversation_that_is_still_paid(
        self, limits: dict[str, int], reply: list[int]
    ) -> None:
        _, dynamics, state = self.begun(**limits)
        for token in (3, 4):
            state = dynamics.step(state, torch.tensor([token]))
        assert state.talk.reply.tolist() == [reply]
        assert self.told(dynamics, state) == (0.25, 0.0, 0.0)
        _, dynamics, state = self.begun(turns_left=1)
        assert self.told(dynamics, dynamics.step(state, torch.tensor([9]))) == (0.25, 0.0, 0.0)

    def test_an_unfinished_turn_that_room_cuts_off_is_not_answered(self) -> None:
        source, dynamics, state = self.begun(room=1)
        assert self.told(dynamics, dynamics.step(state, torch.tensor([3]))) == (0.0, 0.0, 0.0)
        assert source.heard == []

    def test_what_is_over_cannot_be_planned(self) -> None:
        with pytest.raises(ValueError, match=r"have \[9, 0\] at least; a conversation that is over"):
            self.begun(num_left=0)

    def test_heads_of_few_depths_are_refused(self) -> None:
        inner = ByLastToken(torch.zeros(10, 10).double(), torch.arange(10).double())
        inner.max_horizon = 3  # type: ignore[misc]
        with pytest.raises(ValueError, match="ByLastToken takes 3 steps, and a reply takes one a token"):
            ConversationDynamics(inner, Seven(1), eos_id=9, max_turn=2, generator=torch.Generator())
