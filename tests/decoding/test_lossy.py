"""Lossy acceptance: decisions worked by hand, the cases where it must equal lossless decoding, and what it may not do.

The models are tiny and random, their LM heads scaled so that distributions are neither flat nor certain.
"""

from itertools import product

import numpy as np
import pytest
import torch

from worldmtp.decoding import LossyTopN, LossyTypical, generate
from worldmtp.decoding.acceptance import Draft, Tree, accept_lossy_tree, accept_run, accept_tree, typical_threshold
from worldmtp.decoding.drafts import NoDraft

PAD, EOS, VOCAB = 0, 1, 7
EVERYTHING = LossyTopN(n=VOCAB, delta=1.0)
NOTHING = LossyTypical(epsilon=1.0, delta=float(VOCAB))


def logs(*probs: float) -> torch.Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def decisions(rule, *probs: float) -> list[bool]:
    """Of every token as a draft at one place; the logits are off by a constant, as logits are."""
    tokens = torch.arange(len(probs))[None]
    return rule.accepts(tokens, (logs(*probs) + 2).expand(1, len(probs), -1))[0].tolist()


@pytest.mark.parametrize(
    ("probs", "epsilon", "delta", "threshold"),
    [
        ((0.5, 0.5), 1.0, 0.3, 0.15),  # H = ln 2
        ((0.5, 0.25, 0.25), 1.0, 0.3, 0.3 * 2**-1.5),  # H = 0.5 ln 2 + 2 * 0.25 ln 4 = 1.5 ln 2
        ((0.25,) * 4, 1.0, 0.3, 0.075),  # H = ln 4
        ((0.5, 0.5, 0.0), 1.0, 0.3, 0.15),  # what p excludes adds nothing
        ((0.5, 0.5), 0.09, 0.3, 0.09),  # epsilon is the smaller
    ],
)
def test_thresholds_by_hand(probs, epsilon, delta, threshold):
    assert float(typical_threshold(logs(*probs), epsilon, delta)) == pytest.approx(threshold, abs=1e-12)


def test_typical_acceptance_by_hand():
    # H = ln 2 + 3/16 ln(16/3) + 1/16 ln 16 = 1.1803, exp(-H) = 0.3072, 0.3 of it 0.0922: epsilon = 0.09 decides, and
    # 1/16 = 0.0625 is refused. With the two swapped the threshold would be 0.09 * 0.3072 = 0.0276, and it would not be.
    sharp = (8 / 16, 4 / 16, 3 / 16, 1 / 16)
    assert decisions(LossyTypical(), *sharp) == [True, True, True, False]
    assert decisions(LossyTypical(epsilon=0.3, delta=0.09), *sharp) == [True] * 4
    # H = ln 16: the threshold is 0.3 / 16, and all are accepted. With exp(+H) it would be epsilon, and none.
    assert decisions(LossyTypical(), *[1 / 16] * 16) == [True] * 16
    assert decisions(LossyTypical(epsilon=0.09, delta=1.5), *[1 / 16] * 16) == [False] * 16
    assert decisions(LossyTypical(), 0.5, 0.5, 0.0) == [True, True, False]


def test_the_defaults_are_those_of_the_published_runs():
    assert LossyTypical() == LossyTypical(epsilon=0.09, delta=0.3)


def test_relaxed_acceptance_by_hand():
    probs = (0.125, 0.5, 0.25, 0.125)
    assert decisions(LossyTopN(n=1, delta=1.0), *probs) == [False, True, False, False]
    assert decisions(LossyTopN(n=2, delta=1.0), *probs) == [False, True, True, False]
    assert decisions(LossyTopN(n=3, delta=1.0), *probs) == [True, True, True, False]  # of equals the first
    assert decisions(LossyTopN(n=4, delta=0.25), *probs) == [False, True, True, False]  # 0.5 - 0.25 is near enough
    assert decisions(LossyTopN(n=4, delta=0.24), *probs) == [False, True, False, False]
    assert decisions(LossyTopN(n=4, delta=0.0), *probs) == [False, True, False, False]
    assert decisions(LossyTopN(n=3, delta=1.0), 0.5, 0.5, 0.0) == [True, True, False]  # p excludes the last


def test_a_threshold_of_one_accepts_nothing_and_one_half_the_most_likely():
    # min(1, V exp(-H)) = 1, which no probability exceeds, that of a certain token neither.
    assert decisions(LossyTypical(epsilon=1.0, delta=3.0), 1.0, 0.0, 0.0) == [False] * 3
    assert decisions(LossyTypical(epsilon=1.0, delta=3.0), 0.6, 0.3, 0.1) == [False] * 3
    assert decisions(LossyTypical(epsilon=0.5, delta=3.0), 0.6, 0.3, 0.1) == [True, False, False]


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_most_likely_token_is_always_accepted(scale):
    """-ln max p <= H, so max p >= exp(-H) > delta exp(-H) where delta < 1; and rank 0 is below every n."""
    logits = scale * torch.randn((200, 1, 11), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = logits.argmax(dim=-1)
    assert LossyTypical(epsilon=1.0, delta=0.99).accepts(best, logits).all()
    for n in (1, 3, 11):
        assert LossyTopN(n, delta=0.0).accepts(best, logits).all()


def test_a_chain_ends_at_the_first_refusal_and_goes_on_with_the_trunks_token():
    accepted = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, True, True]])
    targets = torch.tensor([[5, 6, 7, 8]] * 4)
    verdict = accept_run(accepted, torch.tensor([3, 3, 3, 1]), targets)
    assert verdict.num_accepted.tolist() == [3, 1, 0, 1]
    assert verdict.next_tokens.tolist() == [8, 6, 5, 6]


def test_a_tree_by_hand():
    #      0
    #    1   2
    #    3   4
    tree = Tree((-1, 0, 0, 1, 2))
    no, yes = False, True
    accepted = torch.tensor(
        [
            [no, yes, yes, no, yes],  # the longest, not the first
            [no, yes, yes, yes, yes],  # two as long: the first
            [no, no, yes, yes, no],  # 3 stands behind a refusal
            [yes, no, no, yes, yes],
        ]
    )
    targets = torch.arange(10, 15).expand(4, -1)
    verdict = accept_lossy_tree(tree, accepted, targets)
    assert verdict.num_accepted.tolist() == [2, 2, 1, 0]
    assert verdict.path.tolist() == [[0, 2, 4], [0, 1, 3], [0, 2, 0], [0, 0, 0]]
    assert verdict.next_tokens.tolist() == [14, 13, 12, 10]
    crossed = accept_lossy_tree(Tree((-1, 0, 0, 2, 1)), accepted[1:2], targets[:1])  # 3 follows 2 here
    assert (crossed.path.tolist(), crossed.next_tokens.tolist()) == ([[0, 2, 3]], [13])


@pytest.mark.parametrize("seed", range(20))
def test_along_the_trunks_own_tokens_a_tree_is_walked_as_the_lossless_one(seed):
    tree = Tree((-1, 0, 0, 1, 1, 2, 4))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([[0, 1, 2, 1, 2, 1, 0]])
    targets = torch.randint(3, (1, 7), generator=generator)
    is_accepted = tokens == targets[:, [0, 0, 0, 1, 1, 2, 4]]
    lossless, lossy = accept_tree(tree, tokens, targets), accept_lossy_tree(tree, is_accepted, targets)
    for name in ("num_accepted", "next_tokens", "path"):
        assert torch.equal(getattr(lossless, name), getattr(lossy, name))


@pytest.fixture
def sharp_model(model_of):
    def make(head: str = "latent", kind: str = "llama", vocab_size: int = VOCAB, seed: int = 0):
        model = model_of(kind, head, 4, vocab_size=vocab_size, seed=seed)
        model.trunk.lm_head.weight.data *= 12
        return model

    return make


DRAFTS = [{}, {"num_draft": 1}, {"tree": (3, 2)}, {"draft": "lookup"}]


@pytest.mark.parametrize("options", DRAFTS, ids=str)
@pytest.mark.parametrize("head", ["latent", "sequential", "medusa"])
@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_top_one_is_lossless_greedy(sharp_model, ragged, head, options, delta):
    model, (ids, mask) = sharp_model(head), ragged(5, 8, seed=1)
    options = {"max_new_tokens": 15, "eos_token_id": EOS, "pad_token_id": PAD} | options
    lossless = generate(model, ids, mask, **options)
    lossy = generate(model, ids, mask, lossy=LossyTopN(n=1, delta=delta), **options)
    assert torch.equal(lossy.sequences, lossless.sequences)
    assert torch.equal(lossy.logprobs, lossless.logprobs)
    assert lossy.num_trunk_forwards == lossless.num_trunk_forwards
    assert lossy.accepted_per_depth.tolist() == lossless.accepted_per_depth.tolist()


@pytest.mark.parametrize("options", DRAFTS, ids=str)
def test_what_exceeds_one_half_is_the_greedy_token(sharp_model, ragged, options):
    """Texts as the greedy ones, token for token; what is likely, and not that likely, is the trunk's own again."""
    model, (ids, mask) = sharp_model(), ragged(6, 8, seed=2)
    model.trunk.lm_head.weight.data *= 10
    options = {"max_new_tokens": 15, "pad_token_id": PAD} | options
    lossless = generate(model, ids, mask, **options)
    lossy = generate(model, ids, mask, lossy=LossyTypical(epsilon=0.5, delta=float(VOCAB)), **options)
    assert torch.equal(lossy.sequences, lossless.sequences)
    assert lossy.accepted_per_depth.sum() > 0


@pytest.mark.parametrize("options", [*DRAFTS, {"do_sample": True}], ids=str)
def test_where_nothing_is_accepted_every_token_takes_a_round(sharp_model, ragged, options):
    model, (ids, mask) = sharp_model(), ragged(4, 6, seed=3)
    if "do_sample" in options:
        options = options | {"generator": torch.Generator().manual_seed(0)}
    found = generate(model, ids, mask, max_new_tokens=9, pad_token_id=PAD, lossy=NOTHING, **options)
    assert found.accepted_per_depth.sum() == 0
    assert found.num_trunk_forwards == 9
    if "do_sample" not in options:
        plain = generate(model, ids, mask, max_new_tokens=9, pad_token_id=PAD, draft="none")
        assert torch.equal(found.sequences, plain.sequences)


@pytest.mark.parametrize("options", [{}, {"tree": (2, 1, 2)}, {"do_sample": True}], ids=str)
def test_where_everything_is_accepted_a_round_gives_all(sharp_model, ragged, options):
    """13 tokens: one of the prompt's forward, then three drafts and one more a round."""
    model, (ids, mask) = sharp_model(), ragged(4, 6, seed=4)
    if "do_sample" in options:
        options = options | {"generator": torch.Generator().manual_seed(0)}
    found = generate(model, ids, mask, max_new_tokens=13, pad_token_id=PAD, lossy=EVERYTHING, **options)
    assert found.num_trunk_forwards == 1 + 12 // 4
    lossless = generate(model, ids, mask, max_new_tokens=13, pad_token_id=PAD, **options)
    assert not torch.equal(found.sequences, lossless.sequences)


@pytest.mark.parametrize("lossy", [LossyTypical(), LossyTopN(n=2, delta=0.3)], ids=["typical", "top_n"])
@pytest.mark.parametrize("options", DRAFTS, ids=str)
@pytest.mark.parametrize("head", ["latent", "sequential", "medusa"])
def test_on_the_same_texts_no_fewer_drafts_are_accepted(sharp_model, ragged, head, options, lossy):
    """One round, so that the texts are the same: the most likely token is accepted by all, and these accept more."""
    model, (ids, mask) = sharp_model(head), ragged(40, 8, seed=5)
    options = {"max_new_tokens": 2, "pad_token_id": PAD} | options
    lossless = generate(model, ids, mask, **options)
    found = generate(model, ids, mask, lossy=lossy, **options)
    assert found.drafted_per_depth.tolist() == lossless.drafted_per_depth.tolist()
    assert (found.accepted_per_depth >= lossless.accepted_per_depth).all()
    assert found.accepted_per_depth.sum() > lossless.accepted_per_depth.sum()


class FixedTree(NoDraft):
    """Drafts the same two branches always: 2 4 and 3 5, or another two."""

    max_drafts = 4
    tree = Tree((-1, 0, 0, 1, 2))

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = torch.tensor(tokens)

    def propose(self, texts, policy, num_drafts):
        return Draft(self._tokens.expand(len(texts), -1), torch.full((len(texts),), 2), tree=self.tree)


@pytest.mark.parametrize("tokens", [[2, 3, 4, 5], [3, 2, 5, 4], [6, 1, 1, 6]], ids=str)
@pytest.mark.parametrize("lossy", [LossyTypical(), LossyTopN(n=3, delta=0.4)], ids=["typical", "top_n"])
def test_a_round_over_a_tree_by_full_forwards(sharp_model, ragged, tokens, lossy):
    model, (ids, mask) = sharp_model(kind="gpt_neox"), ragged(30, 6, seed=6, right=True)
    found = generate(model, ids, mask, max_new_tokens=4, pad_token_id=PAD, draft=FixedTree(tokens), lossy=lossy)
    branches = [(tokens[0], tokens[2]), (tokens[1], tokens[3])]
    longest = []

    def law(text: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model.trunk(torch.tensor([text])).logits[0, -1].softmax(dim=-1).numpy()

    def accepts(token: int, p: np.ndarray) -> bool:
        if isinstance(lossy, LossyTypical):
            entropy = -(p * np.log(p)).sum()
            return bool(p[token] > min(0.09, 0.3 * np.exp(-entropy)))
        return token in np.argsort(-p)[:3] and bool(p[token] >= p.max() - 0.4)

    for row in range(len(ids)):
        prompt = ids[row][mask[row].bool()].tolist()
        text = [*prompt, int(law(prompt).argmax())]
        runs = []
        for branch in branches:
            run = list[int]()
            while len(run) < 2 and accepts(branch[len(run)], law(text + run)):
                run.append(branch[len(run)])
            runs.append(run)
        best = max(runs, key=len)  # the first of several
        expected = [*text, *best, int(law(text + best).argmax())][len(prompt) :]
        assert found.sequences[row, 6 : 6 + len(expected)].tolist() == expected
        longest.append(len(best))
    assert {0, 1, 2} & set(longest) != {0}  # drafts of both lengths are exercised over the parameters


@pytest.mark.parametrize("options", [{}, {"tree": (3, 2, 1)}], ids=str)
def test_log_probabilities_stay_the_trunks(sharp_model, ragged, options):
    model, (ids, mask) = sharp_model("hydra", "gpt_neox"), ragged(4, 7, seed=7)
    found = generate(model, ids, mask, max_new_tokens=10, pad_token_id=PAD, lossy=LossyTopN(n=4, delta=0.9), **options)
    surprised = 0
    for row in range(len(ids)):
        text = torch.cat([ids[row][mask[row].bool()], found.sequences[row, 7:]])
        with torch.no_grad():
            log_p = model.trunk(text[None]).logits[0].log_softmax(dim=-1)[-11:-1]
        torch.testing.assert_close(found.logprobs[row], log_p.gather(1, text[-10:, None])[:, 0], atol=1e-10, rtol=0)
        surprised += int((log_p.argmax(dim=-1) != text[-10:]).sum())
    assert surprised > 0  # texts are not the trunk's own


def test_after_a_refusal_all_of_p_is_drawn_from(sharp_model):
    """Nothing is accepted, so texts have the trunk's law; with the residual of lossless sampling they would not.

    4000 texts of two tokens of 5: chi-square on at most 24 degrees of freedom; 74.6 is exceeded with probability 5e-7.
    """
    vocab, num_texts = 5, 4000
    model = sharp_model(vocab_size=vocab, seed=2)
    prompt = torch.tensor([[3, 1, 4]])
    found = generate(
        model,
        prompt.expand(num_texts, -1).contiguous(),
        torch.ones(num_texts, 3),
        max_new_tokens=3,
        do_sample=True,
        generator=torch.Generator().manual_seed(1),
        lossy=LossyTypical(epsilon=1.0, delta=float(vocab)),
    )
    texts = torch.tensor(list(product(range(vocab), repeat=2)))
    with torch.no_grad():
        log_p = model.trunk(torch.cat([prompt.expand(len(texts), -1), texts], dim=1)).logits.log_softmax(dim=-1)
    law = log_p[:, 2:4].gather(2, texts[..., None])[..., 0].sum(dim=1).exp().numpy()
    counts = np.bincount((found.sequences[:, 3] * vocab + found.sequences[:, 4]).numpy(), minlength=vocab**2)
    assert law.sum() == pytest.approx(1)
    assert ((counts - num_texts * law) ** 2 / (num_texts * law)).sum() < 74.6


def test_equal_generators_give_equal_texts(sharp_model, ragged, global_rng_untouched):
    model, (ids, mask) = sharp_model("sequential"), ragged(3, 5, seed=8)
    with global_rng_untouched():
        first, second = (
            generate(
                model, ids, mask, max_new_tokens=8, do_sample=True, lossy=LossyTypical(), top_k=3,
                generator=torch.Generator().manual_seed(3),
            )
            for _ in range(2)
        )  # fmt: skip
    assert torch.equal(first.sequences, second.sequences)
    assert bool(first.logprobs.isfinite().all())  # nothing that top-k cut away was accepted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossyTypical(epsilon=0.0), r"epsilon=0\.0 is a probability to be exceeded; it must lie in \(0, 1\]"),
        (lambda: LossyTypical(epsilon=1.5), r"epsilon=1\.5 is a probability"),
        (lambda: LossyTypical(delta=0.0), r"delta=0\.0 must be positive"),
        (lambda: LossyTypical(delta=-1.0), r"delta=-1\.0 must be positive"),
        (lambda: LossyTopN(n=0, delta=0.1), "n=0 must be at least 1"),
        (lambda: LossyTopN(n=2, delta=-0.1), r"delta=-0\.1 is a difference of probabilities; it must lie in \[0, 1\]"),
        (lambda: LossyTopN(n=2, delta=1.1), r"delta=1\.1 is a difference"),
    ],
    ids=["epsilon_0", "epsilon_above_1", "delta_0", "delta_negative", "n_0", "gap_negative", "gap_above_1"],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_three_phases_are_lossless(model_of, ragged):
    with pytest.raises(ValueError, match=r"three_phase=True is .*, and lossy=LossyTopN\(n=2, delta=0\.1\) is not"):
        generate(model_of(), *ragged(1, 3, seed=0), max_new_tokens=2, three_phase=True, lossy=LossyTopN(n=2, delta=0.1))
