"""Texts that have to end in a goal: their law by hand, by enumeration of every path, and by the law of total chance."""

import itertools
import math

import pytest
import torch

from worldmtp.exact import GoalTexts, bounded_dyck, markov_chain, mess3

CHAIN = markov_chain(torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64))
HAND = GoalTexts(CHAIN, "ab", 1, 2)
WORLDS = {
    "mess3": GoalTexts(mess3(), "ABC", 4, 4),
    "dyck": GoalTexts(bounded_dyck(1, 2), "().", 4, 4),
}


def beliefs_after(law, text):
    return law.source.beliefs(law.tokens_of([text]))[:, -1]


def test_two_tokens_before_the_goal_by_hand():
    """After 0, with two left and the goal 1: 0 then 1 has 3/4 * 1/4, 1 then 1 has 1/4 * 1/2, so 3 : 2."""
    beliefs, goals = beliefs_after(HAND, "a"), torch.tensor([1])
    assert torch.allclose(HAND.reaching(goals, 2)[0, 0], torch.tensor(5 / 16, dtype=torch.float64))
    said = HAND.marginals(beliefs, goals, 2, 2)[0]
    assert torch.allclose(said, torch.tensor([[0.6, 0.4], [0.0, 1.0]], dtype=torch.float64))
    split = HAND.true_split(beliefs, goals, 2, 2)
    assert split.noise[0].tolist() == pytest.approx([-0.6 * math.log(0.6) - 0.4 * math.log(0.4), 0.0])
    assert split.structural[0].tolist() == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("name", WORLDS)
def test_every_path_enumerated_says_the_same(name):
    law, generator = WORLDS[name], torch.Generator().manual_seed(0)
    tokens, _ = law.source.sample(6, 8, generator)
    symbols, left = range(law.source.num_symbols), law.answer_length
    beliefs, goals = law.source.beliefs(tokens[:, :4])[:, -1], tokens[:, -1]
    for row in range(len(tokens)):
        paths = [(*path, int(goals[row])) for path in itertools.product(symbols, repeat=left - 1)]
        source_says = law.source.path_logprob(beliefs[row].expand(len(paths), -1), torch.tensor(paths)).sum(dim=1).exp()
        chances = dict(zip(paths, (source_says / source_says.sum()).tolist(), strict=True))
        for k in range(1, left + 1):
            begun = {}
            for path, chance in chances.items():
                begun[path[:k]] = begun.get(path[:k], 0.0) + chance
            wanted = [sum(chance for path, chance in begun.items() if path[-1] == token) for token in symbols]
            one = slice(row, row + 1)
            assert law.marginals(beliefs[one], goals[one], left, k)[0, k - 1].tolist() == pytest.approx(wanted)
            joint = law.joint(beliefs[one], goals[one], left, k)[0]
            wanted = [begun.get(path, 0.0) for path in itertools.product(symbols, repeat=k)]
            assert joint.tolist() == pytest.approx(wanted)


def test_over_all_goals_it_is_the_source_itself():
    law = WORLDS["mess3"]
    beliefs = beliefs_after(law, "ABBA").expand(3, -1)
    goals = torch.arange(3)
    chance = law.source.marginals(beliefs[:1], 4)[0, -1]  # of each goal
    mixed = (chance[:, None, None] * law.marginals(beliefs, goals, 4, 3)).sum(dim=0)
    assert torch.allclose(mixed, law.source.marginals(beliefs[:1], 3)[0])


def test_noise_is_the_mean_entropy_behind_every_token_between():
    law, goals = WORLDS["mess3"], torch.tensor([2])
    beliefs = beliefs_after(law, "ABBA")
    first = law.marginals(beliefs, goals, 4, 1)[0, 0]
    behind = [law.marginals(law.source.update(beliefs, torch.tensor([token])), goals, 3, 1)[0, 0] for token in range(3)]
    noise = sum(float(p) * float(-(law_of * law_of.log()).sum()) for p, law_of in zip(first, behind, strict=True))
    split = law.true_split(beliefs, goals, 4, 2)
    assert float(split.noise[0, 1]) == pytest.approx(noise)
    second = law.marginals(beliefs, goals, 4, 2)[0, 1]
    assert float(split.structural[0, 1]) == pytest.approx(float(-(second * second.log()).sum()) - noise)
    assert float(split.structural[0, 1]) > 0.001


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: GoalTexts(CHAIN, "aa", 1, 2), "2 different characters"),
        (lambda: GoalTexts(CHAIN, "abc", 1, 2), "2 different characters"),
        (lambda: GoalTexts(CHAIN, "ab", 0, 2), "must be at least 1"),
        (lambda: HAND.tokens_of(["az"]), r"\['z'\] are none of"),
        (lambda: HAND.marginals(beliefs_after(HAND, "a"), torch.tensor([1]), 2, 3), r"depth=3 must lie in 1 \.\. 2"),
        (
            # After one opening of one kind nothing is closed for good two tokens on but by ")" and ".".
            lambda: WORLDS["dyck"].marginals(beliefs_after(WORLDS["dyck"], "("), torch.tensor([2]), 1, 1),
            "text 0 cannot end in its goal '.'",
        ),
    ],
)
def test_what_cannot_be_is_refused(what, words):
    with pytest.raises(ValueError, match=words):
        what()
