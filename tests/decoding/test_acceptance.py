"""The rules of acceptance leave the trunk's law as it is: enumerated to 1e-10, and mutants of them do not.

p and q are random tables over all prefixes of a small vocabulary. ``law`` follows every draft, every verdict and every
next token with its probability, round after round, until so many tokens are out; the truth is the product of p.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from worldmtp.decoding.acceptance import (
    Tree,
    accept_equal,
    accept_sampled,
    accept_tree,
    acceptance_probability,
    residual,
)
from worldmtp.model.categorical import draw

Prefix = tuple[int, ...]
Law = dict[Prefix, float]


class Tables:
    """log p and log q of the token after any prefix, drawn once and kept."""

    def __init__(self, vocab: int, seed: int, sparse: bool = False) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: dict[tuple[str, Prefix], torch.Tensor] = {}
        self.vocab, self._sparse = vocab, sparse

    def __call__(self, which: str, prefix: Prefix) -> torch.Tensor:
        if (which, prefix) not in self._kept:
            logits = 2 * torch.randn(self.vocab, generator=self._generator, dtype=torch.float64)
            if self._sparse:  # top-k: the two cut different tokens
                logits[torch.randint(self.vocab, (1,), generator=self._generator)] = -torch.inf
            self._kept[which, prefix] = logits.log_softmax(dim=-1)
        return self._kept[which, prefix]


def true_law(tables: Tables, num_tokens: int) -> Law:
    found: Law = {}
    for tokens in product(range(tables.vocab), repeat=num_tokens):
        found[tokens] = float(sum(tables("p", tokens[:n])[token] for n, token in enumerate(tokens)).exp())
    return found


def law(round_law: Callable[[Prefix], Law], num_tokens: int) -> Law:
    """Rounds from the empty prefix until ``num_tokens`` are out; what a round gives beyond is cut."""
    found: Law = {}
    waiting: Law = {(): 1.0}
    while waiting:
        prefix, mass = waiting.popitem()
        for emitted, chance in round_law(prefix).items():
            text = (prefix + emitted)[:num_tokens]
            target = found if len(text) == num_tokens else waiting
            target[text] = target.get(text, 0.0) + mass * chance
    return found


def distance(first: Law, second: Law) -> float:
    return 0.5 * sum(abs(first.get(text, 0.0) - second.get(text, 0.0)) for text in first | second)


def drawn_round(tables: Tables, num_drafts: int, accept: Callable = acceptance_probability, rest: Callable = residual):
    """The law of a round whose drafts are drawn from q."""

    def round_law(prefix: Prefix) -> Law:
        found: Law = {}

        def add(emitted: Prefix, log_next: torch.Tensor, mass: float) -> None:
            for token, chance in enumerate(log_next.exp().tolist()):
                found[(*emitted, token)] = found.get((*emitted, token), 0.0) + mass * chance

        def go(drafts: Prefix, mass: float) -> None:
            here = prefix + drafts
            if len(drafts) == num_drafts:
                add(drafts, tables("p", here), mass)
                return
            log_p, log_q = tables("p", here), tables("q", here)
            every = torch.arange(tables.vocab)[:, None]  # a row for each draft
            chances = accept(every, log_q.expand(tables.vocab, 1, -1), log_p.expand(tables.vocab, 1, -1))[:, 0]
            refused = 0.0
            for draft, (probability, chance) in enumerate(zip(log_q.exp().tolist(), chances.tolist(), strict=True)):
                drawn = mass * probability
                if drawn * chance > 0:
                    go((*drafts, draft), drawn * chance)
                refused += drawn * (1 - chance)
            if refused > 0:
                add(drafts, rest(log_q[None], log_p[None])[0], refused)

        go((), 1.0)
        return found

    return round_law


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("num_drafts", [1, 2, 3])
@pytest.mark.parametrize("vocab", [4, 5])
def test_drawn_drafts_leave_the_law(vocab, num_drafts, sparse):
    tables = Tables(vocab, seed=num_drafts, sparse=sparse)
    assert distance(law(drawn_round(tables, num_drafts), 3), true_law(tables, 3)) < 1e-10


@pytest.mark.parametrize(
    ("accept", "rest"),
    [
        (acceptance_probability, lambda log_q, log_p: log_p),  # the correction is drawn from p
        (acceptance_probability, lambda log_q, log_p: (log_p.exp() - log_q.exp()).abs().log().log_softmax(dim=-1)),
        (lambda x, log_q, log_p: log_p.gather(2, x[..., None]).exp()[..., 0], residual),  # q as if it were one-hot
        (lambda x, log_q, log_p: acceptance_probability(x, log_p, log_q), residual),  # the ratio upside down
    ],
)
def test_wrong_rules_shift_the_law(accept, rest):
    tables = Tables(4, seed=2)
    assert distance(law(drawn_round(tables, 2, accept, rest), 3), true_law(tables, 3)) > 1e-3


def chosen_round(tables: Tables, tree: Tree, tokens_of: Callable[[Prefix], list[int]], as_chain: bool = False):
    """The law of a round whose drafts are chosen: all draws of the trunk's token after every node, a row each."""

    def round_law(prefix: Prefix) -> Law:
        found: Law = {}
        tokens = torch.tensor([[0, *tokens_of(prefix)]])
        paths = [
            tuple(int(tokens[0, j]) for j in range(1, len(tree.parents)) if tree.ancestors[node, j])
            for node in range(len(tree.parents))
        ]
        places = [tables("p", prefix + path) for path in paths]
        drawn = torch.tensor(list(product(range(tables.vocab), repeat=len(places))))
        masses = sum(place[drawn[:, node]] for node, place in enumerate(places)).exp()
        rows = tokens.expand(len(drawn), -1)
        if as_chain:
            logits = torch.nn.functional.one_hot(drawn, tables.vocab).double()
            verdict = accept_equal(rows[:, 1:], torch.full((len(drawn),), tokens.shape[1] - 1), logits.argmax(dim=-1))
            kept = rows[:, 1:]
        else:
            verdict = accept_tree(tree, rows, drawn)
            kept = rows.gather(1, verdict.path[:, 1:])
        told = zip(
            kept.tolist(), verdict.num_accepted.tolist(), verdict.next_tokens.tolist(), masses.tolist(), strict=True
        )
        for drafts, num_accepted, token, mass in told:
            emitted = (*drafts[:num_accepted], token)
            found[emitted] = found.get(emitted, 0.0) + mass
        return found

    return round_law


@pytest.mark.parametrize("vocab", [4, 5])
def test_chosen_chains_leave_the_law(vocab):
    tables = Tables(vocab, seed=5)
    chain = Tree((-1, 0, 1))
    found = law(chosen_round(tables, chain, lambda prefix: [len(prefix) % vocab, 1], as_chain=True), 3)
    assert distance(found, true_law(tables, 3)) < 1e-10


@pytest.mark.parametrize("parents", [(-1, 0, 0), (-1, 0, 0, 1), (-1, 0, 1, 1, 2)])
@pytest.mark.parametrize("vocab", [4, 5])
def test_chosen_trees_leave_the_law(vocab, parents):
    tables = Tables(vocab, seed=6)
    tokens = [1, 2, 3, 0][: len(parents) - 1]  # siblings differ
    found = law(chosen_round(tables, Tree(parents), lambda prefix: tokens), 3)
    assert distance(found, true_law(tables, 3)) < 1e-10


def test_an_argmax_draft_is_not_drawn_from_its_softmax():
    """An argmax draft with softmax(logits) for q, the classic mistake: the law shifts."""
    tables = Tables(4, seed=7)

    def round_law(prefix: Prefix) -> Law:
        log_q, log_p = tables("q", prefix), tables("p", prefix)
        draft = int(log_q.argmax())
        chance = float(acceptance_probability(torch.tensor([[draft]]), log_q[None, None], log_p[None, None])[0, 0])
        found = {
            (token,): (1 - chance) * float(p) for token, p in enumerate(residual(log_q[None], log_p[None])[0].exp())
        }
        found[(draft,)] += chance
        return found

    assert distance(law(round_law, 2), true_law(tables, 2)) > 1e-2


def test_acceptance_and_residual_by_hand():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.2, 0.6, 0.0, 0.2])
    drafts = torch.tensor([[0, 1, 3]])
    chances = acceptance_probability(drafts, q.log().expand(1, 3, 4), p.log().expand(1, 3, 4))
    torch.testing.assert_close(chances, torch.tensor([[1.0, 0.5, 0.0]]))
    # p - q = 0.3, -0.3, 0.2, -0.2: of what is left 3 to 2.
    torch.testing.assert_close(residual(q.log()[None], p.log()[None]).exp(), torch.tensor([[0.6, 0.0, 0.4, 0.0]]))


def test_a_draft_that_q_cannot_have_drawn_is_never_accepted():
    """With q = (1, 0, 0) a draft of token 1 or 2 is impossible; p gives the three drafts 0, 1/2 and 0."""
    log_q = torch.tensor([1.0, 0.0, 0.0]).log().expand(1, 3, 3)
    log_p = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]]).log()[None]
    assert acceptance_probability(torch.tensor([[0, 1, 2]]), log_q, log_p).tolist() == [[0.0, 0.0, 0.0]]


def test_after_drafts_that_were_all_accepted_comes_the_trunks_next_token():
    """Tokens 0 and 1 are certain to q and p; behind them p says 2, behind the first alone 1, whatever row it is.

    Row 0 means both drafts, row 1 the first alone, row 2 none; nothing was refused, so nothing is corrected.
    """
    certain = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]] * 3), 4).double().log()
    wrong = torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64).log()  # q behind drafts that a row does not mean
    log_q = certain[:, :2].clone()
    log_q[1, 1] = log_q[2, 0] = log_q[2, 1] = wrong
    drafts, num_drafts = torch.tensor([[0, 1]] * 3), torch.tensor([2, 1, 0])
    verdict = accept_sampled(drafts, num_drafts, log_q, certain, torch.Generator().manual_seed(0))
    assert verdict.num_accepted.tolist() == [2, 1, 0]
    assert verdict.next_tokens.tolist() == [2, 1, 0]
    # The third row's q may be anything: the token is drawn from p, here a half each, and not from what q left of it.
    half = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64).log().expand(400, 2, 2)
    sure = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64).log().expand(400, 1, 2)
    none = torch.zeros((400, 1), dtype=torch.long), torch.zeros(400, dtype=torch.long)
    drawn = accept_sampled(*none, sure, half, torch.Generator().manual_seed(0)).next_tokens
    # Binomial(400, 1/2): 120 to 280 are eight standard deviations, and the seed is fixed.
    assert 120 < int(drawn.sum()) < 280


def test_equal_laws_never_give_nan():
    log_p = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    log_q = log_p.roll(0, dims=0) + 0.0
    assert torch.equal(residual(log_q, log_p), log_p)
    nudged = (log_p.exp() * (1 + 1e-7)).log()
    assert not residual(nudged, log_p).isnan().any()
    drafts = torch.zeros((50, 1), dtype=torch.long)
    verdict = accept_sampled(
        drafts,
        torch.ones(50, dtype=torch.long),
        nudged[:, None],
        log_p[:, None].repeat(1, 2, 1),
        torch.Generator().manual_seed(1),
    )
    assert bool((verdict.next_tokens < 4).all())


def test_drafts_a_row_does_not_mean_are_not_accepted():
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3]] * 3), 5).float()
    drafts = torch.tensor([[1, 2], [1, 2], [1, 4]])
    verdict = accept_equal(drafts, torch.tensor([2, 1, 2]), logits.argmax(dim=-1))
    assert verdict.num_accepted.tolist() == [2, 1, 1]
    assert verdict.next_tokens.tolist() == [3, 2, 2]


def test_nothing_after_a_refusal_is_accepted():
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 0]]), 5).float()
    verdict = accept_equal(torch.tensor([[1, 0, 3]]), torch.tensor([3]), logits.argmax(dim=-1))
    assert (verdict.num_accepted.tolist(), verdict.next_tokens.tolist()) == ([1], [2])


def test_draws_of_the_sampler_follow_what_it_computes():
    # 20 000 rows of one draft, vocabulary 4: chi-square of the first emitted token on 3 degrees of freedom; 33.4 is
    # exceeded with probability 2.7e-7.
    tables, rows = Tables(4, seed=9), 20_000
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = tables("p", ()), tables("q", ())
    drafts = torch.multinomial(log_q.exp(), rows, replacement=True, generator=generator)[:, None]
    ones = torch.ones(rows, dtype=torch.long)
    places = log_p.expand(rows, 2, 4)
    for verdict, drafted in (
        (accept_sampled(drafts, ones, log_q.expand(rows, 1, 4), places, generator), drafts[:, 0]),
        (accept_equal(drafts * 0 + 2, ones, draw(places.flatten(0, 1), generator).view(rows, 2)), drafts[:, 0] * 0 + 2),
    ):
        first = torch.where(verdict.num_accepted > 0, drafted, verdict.next_tokens)
        counts, expected = np.bincount(first, minlength=4), rows * log_p.exp().numpy()
        assert ((counts - expected) ** 2 / expected).sum() < 33.4


def test_a_walk_by_hand():
    #      0
    #    1   2          tokens 5 and 7 after the root, 6 after 1, 8 after 2
    #    3   4
    tree = Tree((-1, 0, 0, 1, 2))
    assert tree.depths.tolist() == [0, 1, 1, 2, 2]
    assert tree.ancestors.long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 1, 0, 1],
    ]
    tokens = torch.tensor([[0, 5, 7, 6, 8]] * 4)
    targets = torch.tensor(
        [
            [7, 9, 8, 9, 4],  # 7, then 8, then 4
            [5, 8, 9, 9, 9],  # 5, then 8, which is the other branch's draft and not 1's
            [6, 9, 9, 9, 9],  # no child of the root
            [5, 6, 9, 2, 9],
        ]
    )
    verdict = accept_tree(tree, tokens, targets)
    assert verdict.num_accepted.tolist() == [2, 1, 0, 2]
    assert verdict.next_tokens.tolist() == [4, 8, 6, 2]
    assert verdict.path.tolist() == [[0, 2, 4], [0, 1, 0], [0, 0, 0], [0, 1, 3]]


@pytest.mark.parametrize("parents", [(), (0,), (-1, 1), (-1, 0, 2), (-1, -1)])
def test_what_is_no_tree_is_refused(parents):
    with pytest.raises(ValueError, match="must start with -1, and every other node follow its parent"):
        Tree(parents)
