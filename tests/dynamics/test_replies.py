"""The model of replies: its probabilities worked by hand, what it may see, what it draws, whom it is judged on."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.dynamics.replies import ReplyModel, check_room, held_out, trained_on, variation
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_network import ReplySizes, reply_classes
from worldmtp.dynamics.turns import NOTHING, Turns

SIZES = ReplySizes(vocab_size=3, opening=2, said=1, reply=2, num_turns=5, num_reward_bins=3)
N = NOTHING


def make_model(history: bool = False, seed: int = 0, sizes: ReplySizes = SIZES, **fields: object) -> ReplyModel:
    """A model whose weights are all random, in double precision; two members, one attention head in two."""
    config = replace(ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2), **fields)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    model = ReplyModel(sizes, config, history, torch.tensor([-1.0, 0.0, 1.0]), generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def make_turns(seed: int = 0, episodes: int = 4, turns: int = 3, sizes: ReplySizes = SIZES) -> Turns:
    """Random conversations with replies of every length, rewards on the bins, and some shorter ones."""
    generator = torch.Generator().manual_seed(seed)

    def texts(*shape: int) -> torch.Tensor:
        tokens = torch.randint(sizes.vocab_size, shape, generator=generator)
        length = torch.randint(shape[-1] + 1, shape[:-1], generator=generator)
        return torch.where(torch.arange(shape[-1]) < length[..., None], tokens, N)

    number = torch.randint(1, turns + 1, (episodes,), generator=generator)
    number[0] = turns
    return Turns(
        opening=torch.randint(sizes.vocab_size, (episodes, sizes.opening), generator=generator),
        said=torch.randint(sizes.vocab_size, (episodes, turns, sizes.said), generator=generator),
        replies=texts(episodes, turns, sizes.reply),
        rewards=torch.randint(-1, 2, (episodes, turns), generator=generator).double(),
        ended=torch.rand((episodes, turns), generator=generator) < 0.3,
        mask=torch.arange(turns) < number[:, None],
    )


def one(replies: list[list[int]], rewards: list[float], ended: list[bool]) -> Turns:
    """A conversation of as many turns."""
    return Turns(
        opening=torch.tensor([[0, 1]]),
        said=torch.zeros((1, len(replies), 1), dtype=torch.int64),
        replies=torch.tensor([replies]),
        rewards=torch.tensor([rewards], dtype=torch.float64),
        ended=torch.tensor([ended]),
        mask=torch.ones((1, len(replies)), dtype=torch.bool),
    )


def test_the_classes_of_a_reply() -> None:
    """Tokens, then the end where there is room for one, then nothing."""
    replies = torch.tensor([[0, 2], [1, N], [N, N]])
    assert reply_classes(replies, end=3).tolist() == [[0, 2], [1, 3], [3, N]]


def test_nats_of_a_model_that_knows_nothing_but_what_was_seen() -> None:
    """All weights zero: each place is uniform over the classes that it has had.

    Seen at the first place: 0, 1 and the end; at the second: 2 and the end. Rewards 0 and 1 of three bins, and both of
    going on and ending. The reply [0, 2] costs log 3 + log 2, its reward 0 costs log 2, going on costs log 2.
    """
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    turns = one([[0, 2], [1, N], [N, N]], [0.0, 0.0, 1.0], [False, False, True])
    model.observe(turns)
    nats = model.nats(turns)
    three, two = torch.tensor(3.0).log(), torch.tensor(2.0).log()
    expected = torch.stack([three + two + 2 * two, three + two + 2 * two, three + 2 * two]).double()
    torch.testing.assert_close(nats, expected.expand(2, -1))


def test_a_reward_between_bins_costs_nothing_when_it_is_known() -> None:
    """Half on each of the two bins around .5 is the best there is, and has divergence zero from the two-hot."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    turns = one([[N, N]], [0.5], [False])
    model.observe(turns)  # the only reply, the only end, and the bins 0 and 1 with equal weight
    torch.testing.assert_close(model.nats(turns), torch.zeros(2, 1, dtype=torch.float64))


@settings(deadline=None, max_examples=20)
@given(st.booleans(), st.booleans(), st.integers(0, 1000))
def test_probabilities_of_all_replies_add_up_to_one(history: bool, autoregressive: bool, seed: int) -> None:
    """Of the 13 replies of up to two tokens from three, times three rewards, times going on or ending."""
    model = make_model(history, seed, autoregressive=autoregressive)
    model.seen_tokens.fill_(True), model.seen_rewards.fill_(True), model.seen_ends.fill_(True)
    replies = [[N, N], *([a, N] for a in range(3)), *([a, b] for a in range(3) for b in range(3))]
    every = list(itertools.product(replies, (-1.0, 0.0, 1.0), (False, True)))
    turns = make_turns(seed, episodes=1).select(torch.zeros(len(every), dtype=torch.int64))
    for row, (reply, reward, ended) in enumerate(every):
        turns.replies[row, -1], turns.rewards[row, -1], turns.ended[row, -1] = torch.tensor(reply), reward, ended
    nats = model.nats(turns).unflatten(1, turns.mask.shape)[:, :, -1]
    torch.testing.assert_close(torch.exp(-nats).sum(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("history", [False, True])
def test_one_turn_alone_is_computed_as_among_the_others(history: bool) -> None:
    model, turns = make_model(history), make_turns()
    number = torch.tensor([2, 0, 1, 0])
    expected = model.network.turns(turns)[:, torch.arange(4), number]
    torch.testing.assert_close(model.network.turn_vectors(turns, number), expected)


@pytest.mark.parametrize("history", [False, True])
def test_what_a_turn_sees(history: bool) -> None:
    """Its words and the reply before them; with the history everything before; never its own reply or what is later."""
    model, turns = make_model(history), make_turns(turns=4)
    before = model.network.turns(turns)

    def moves(name: str, turn: int) -> list[bool]:
        """Which turns' vectors change with what was said or replied in a turn."""
        changed = getattr(turns, name).clone()
        changed[:, turn] = (changed[:, turn] + 1).clamp_max(2)
        changed[:, turn, 0] = (getattr(turns, name)[:, turn, 0] + 2) % 3
        after = model.network.turns(replace(turns, **{name: changed}))
        return (after - before).abs().amax(dim=(0, 1, 3)).gt(1e-12).tolist()

    assert moves("said", 1) == [False, True, history, history]
    assert moves("replies", 1) == [False, False, True, history]


@pytest.mark.parametrize("history", [False, True])
def test_a_conversation_does_not_depend_on_those_beside_it(history: bool) -> None:
    model, turns = make_model(history), make_turns()
    model.observe(turns)
    together = model.nats(turns)
    alone = torch.cat([model.nats(turns.select(torch.tensor([row]))) for row in range(len(turns))], dim=1)
    torch.testing.assert_close(together, alone)


def test_members_have_nothing_in_common() -> None:
    """The nats of one member move no weight of another."""
    model, turns = make_model(history=True), make_turns()
    model.observe(turns)
    model.nats(turns)[0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad[1].abs().max() == 0, name
    assert model.network.said.table.grad is not None
    assert model.network.said.table.grad[0].abs().max() > 0


@pytest.mark.parametrize("history", [False, True])
def test_the_placebo_sees_no_words(history: bool) -> None:
    blind = ReplyModel(
        SIZES, ReplyModelConfig(), history, torch.tensor([-1.0, 0.0, 1.0]), torch.Generator().manual_seed(0), blind=True
    )
    turns = make_turns()
    other = replace(turns, said=(turns.said + 1) % 3)
    assert torch.equal(blind.network.turns(turns), blind.network.turns(other))
    number = torch.tensor([2, 0, 1, 0])
    assert torch.equal(blind.network.turn_vectors(turns, number), blind.network.turn_vectors(other, number))


@torch.no_grad()
@pytest.mark.parametrize("autoregressive", [False, True])
def test_draws_follow_the_mixture_of_the_members(autoregressive: bool) -> None:
    """Of each of the 13 replies with its end, 40,000 draws, four standard deviations."""
    model = make_model(history=True, seed=3, autoregressive=autoregressive)
    for parameter in model.parameters():
        parameter.mul_(0.5)  # else some replies have no probability to speak of
    turns = make_turns(episodes=1)
    model.observe(make_turns(seed=5, episodes=64))
    number, count = torch.tensor([2]), 40_000
    many = turns.select(torch.zeros(count, dtype=torch.int64))
    drawn = model.imagine(many, number.expand(count), torch.Generator().manual_seed(0))
    found: dict[tuple[int, ...], int] = {}
    for reply in drawn.replies.tolist():
        found[tuple(reply)] = found.get(tuple(reply), 0) + 1
    every = [(N, N), *((a, N) for a in range(3)), *((a, b) for a in range(3) for b in range(3))]
    total = 0.0
    for reply in every:
        turns.replies[0, 2] = torch.tensor(reply)
        probability = 0.0
        for reward in (-1.0, 0.0, 1.0):
            for ended in (False, True):
                turns.rewards[0, 2], turns.ended[0, 2] = reward, ended
                probability += float(torch.exp(-model.nats(turns)[:, 2]).mean())
        total += probability
        spread = (probability * (1 - probability) / count) ** 0.5
        assert abs(found.get(reply, 0) / count - probability) <= 4 * spread + 1e-9, reply
    assert total == pytest.approx(1.0)


def test_what_was_never_seen_is_never_drawn() -> None:
    """No win before the first win: not its token, not its reward, not its end."""
    model = make_model()
    model.observe(one([[0, N], [1, N]], [0.0, 0.0], [False, False]))
    turns = make_turns(episodes=512)
    drawn = model.imagine(turns, turns.num_turns - 1, torch.Generator().manual_seed(0))
    assert set(map(tuple, drawn.replies.tolist())) == {(0, N), (1, N)}
    assert float(drawn.rewards.abs().max()) < 1e-6
    assert not bool(drawn.ended.any())


def test_replies_that_were_never_heard_are_told_though_their_tokens_were() -> None:
    """Heard: 0 1 and 1 0. So 0 0 and 1 1 can be drawn, and are new."""
    model = make_model()
    model.observe(one([[0, 1], [1, 0]], [0.0, 0.0], [False, False]))
    other = make_model(seed=1)
    other.load_state_dict(model.state_dict())
    turns = make_turns(episodes=256)
    for known in (model, other):
        drawn = known.imagine(turns, turns.num_turns - 1, torch.Generator().manual_seed(0))
        replies = [tuple(reply) for reply in drawn.replies.tolist()]
        assert {(0, 0), (1, 1)} & set(replies)
        assert [reply not in ((0, 1), (1, 0)) for reply in replies] == drawn.unheard.tolist()


def test_disagreement_by_hand() -> None:
    """Members (1, 0) and (0, 1) are each half away from (.5, .5); equal members agree."""
    probs = torch.tensor([[[1.0, 0.0], [0.3, 0.7]], [[0.0, 1.0], [0.3, 0.7]]])
    torch.testing.assert_close(variation(probs.log()), torch.tensor([0.5, 0.0]))


def test_the_largest_disagreement_of_the_places_counts_but_not_behind_the_end() -> None:
    """One member says 0 and ends, the other 0 and 1: they agree on the first token and not on what follows."""
    model = make_model(autoregressive=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        logits = model.network.parallel.bias.view(2, 1, 2, 4)
        logits[:, 0, 0, 0] = 50.0
        logits[0, 0, 1, 3] = logits[1, 0, 1, 1] = 50.0
    model.seen_tokens.fill_(True), model.seen_rewards.fill_(True), model.seen_ends.fill_(True)
    turns = make_turns(episodes=8)
    drawn = model.imagine(turns, turns.num_turns - 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.disagreement, torch.full((8,), 0.5, dtype=torch.float64))
    with torch.no_grad():
        logits[:, 0, 0, 0], logits[:, 0, 0, 3] = 0.0, 50.0  # both end at once: the second place is never reached
    drawn = model.imagine(turns, turns.num_turns - 1, torch.Generator().manual_seed(0))
    assert float(drawn.disagreement.max()) < 1e-6


@pytest.mark.parametrize("at", [0, 1])
def test_a_row_that_has_ended_keeps_its_disagreement_while_others_go_on(at: int) -> None:
    """Members that differ on whether a reply ends at once: every row has that; on the second token: those with one."""
    model = make_model(autoregressive=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        logits = model.network.parallel.bias.view(2, 1, 2, 4)
        if at == 0:
            logits[0, 0, 0, 0] = logits[1, 0, 0, 3] = logits[:, 0, 1, 1] = 50.0
        else:
            logits[:, 0, 0, 0] = logits[:, 0, 0, 3] = logits[0, 0, 1, 1] = logits[1, 0, 1, 2] = 50.0
    model.seen_tokens.fill_(True), model.seen_rewards.fill_(True), model.seen_ends.fill_(True)
    turns = make_turns(episodes=64)
    drawn = model.imagine(turns, turns.num_turns - 1, torch.Generator().manual_seed(0))
    goes_on = drawn.replies[:, 0] != N
    assert 0 < goes_on.sum() < 64
    expected = torch.full((64,), 0.5, dtype=torch.float64) if at == 0 else 0.5 * goes_on.double()
    torch.testing.assert_close(drawn.disagreement, expected)


def test_members_that_disagree_on_the_reward_alone_disagree() -> None:
    """One pays 1 and the other 0 for the same reply: each is half away from their mixture."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.network.parallel.bias.view(2, 1, 2, 4)[:, 0, :, 3] = 50.0
        model.network.reward.bias[0, 0, 2] = model.network.reward.bias[1, 0, 1] = 50.0
    model.seen_tokens.fill_(True), model.seen_rewards.fill_(True), model.seen_ends.fill_(True)
    turns = make_turns(episodes=8)
    drawn = model.imagine(turns, turns.num_turns - 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.disagreement, torch.full((8,), 0.5, dtype=torch.float64))


@given(st.integers(2, 5), st.lists(st.integers(0, 99), min_size=1, max_size=20))
def test_no_member_is_judged_on_what_it_was_trained_on(num_members: int, numbers: list[int]) -> None:
    episodes = torch.tensor(numbers)
    trains = trained_on(episodes, num_members)
    assert (trains.sum(dim=0) == num_members - 1).all()
    assert float(held_out(trains.float(), episodes).sum()) == 0.0


def test_texts_longer_than_the_room_are_told() -> None:
    with pytest.raises(ValueError, match=r"replies of 2 tokens .* room for 1; raise world_model\.replies\.max_reply"):
        check_room(one([[0, 2]], [0.0], [False]), replace(SIZES, reply=1))
    with pytest.raises(ValueError, match="opening of 2 tokens where the model of replies has room for 1"):
        check_room(one([[0, 2]], [0.0], [False]), replace(SIZES, opening=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": "all"}, "context='all' is unknown; choose from"),
        ({"num_members": 1}, "num_members=1 must be at least 2"),
        ({"hidden_size": 30}, "hidden_size=30 must be a multiple of num_heads=4"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive and finite"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be finite and not negative"),
        ({"rewarded_share": 1.0}, r"rewarded_share=1.0 must be in \[0, 1\)"),
        ({"max_reply": 0}, "max_reply=0 must be at least 1"),
    ],
)
def test_configs_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplyModelConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("reward", [1.5, -1.5])
def test_a_reward_that_no_bin_holds_is_told(reward: float) -> None:
    """It would be imagined as 1 or -1. Where there is no turn, what stands in its place is nobody's reward."""
    turns = one([[0, N], [1, N]], [0.0, reward], [False, True])
    with pytest.raises(ValueError, match=r"Widen model\.reward_range"):
        make_model().observe(turns)
    make_model().observe(replace(turns, mask=torch.tensor([[True, False]])))
    make_model().observe(one([[0, N]], [1 + 1e-7], [True]))
