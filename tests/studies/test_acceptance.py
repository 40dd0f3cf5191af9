"""Acceptance measured on the trunk's texts is that of drafting and verifying, token by token."""

import itertools

import pytest
import torch

from worldmtp.objective import MTPObjective
from worldmtp.studies.acceptance import greedy_acceptance, sampled_acceptance, write_texts
from worldmtp.studies.training import Batch, TrainingConfig, train

PROMPTS = torch.randint(4, (3, 3), generator=torch.Generator().manual_seed(5))
KINDS = ("sequential", "parallel")  # action-conditional and parallel


def next_token(model, prefix: list[int]) -> int:
    """The trunk's greedy choice, by a pass of Hugging Face's own model without a cache."""
    return int(model.trunk(torch.tensor([prefix])).logits[0, -1].argmax())


def num_accepted(model, prefix: list[int]) -> int:
    """Drafts of depths 2 .. K from their own drafts, then the trunk's word on each, up to the first rejection."""
    root, drafted = len(prefix) - 1, [*prefix, next_token(model, prefix)]
    for depth in range(2, model.config.depth + 1):
        latent = model.latents(torch.tensor([drafted]))[depth - 1][:, root]
        drafted.append(int(model.logits_of(latent, depth).argmax()))
    accepted = 0
    while root + 2 + accepted < len(drafted) and (
        next_token(model, drafted[: root + 2 + accepted]) == drafted[root + 2 + accepted]
    ):
        accepted += 1
    return accepted


@pytest.mark.parametrize("head", KINDS)
@torch.no_grad()
def test_greedy_acceptance_is_that_of_drafting_and_verifying(make_model, head):
    model = make_model(head)
    texts = write_texts(model, PROMPTS, 12)
    with torch.enable_grad():  # a little training: some drafts are accepted then, and some are not
        settings = TrainingConfig(num_steps=5, learning_rate=1e-2, warmup_steps=1, trains_trunk=False)
        train(model, lambda step: Batch(texts, texts), MTPObjective(), settings)
    # Roots: the prompt's last token and all after it with K = 4 written tokens to come.
    found = [[num_accepted(model, row[: t + 1]) for t in range(2, 15 - 4)] for row in texts.tolist()]
    expected = [[sum(n >= depth for n in row) / len(row) for depth in (1, 2, 3)] for row in found]
    acceptance = greedy_acceptance(model, texts, 3)
    torch.testing.assert_close(acceptance, torch.tensor(expected))
    # Some drafts are accepted and some not, or the comparison would say little.
    assert 0.05 < float(acceptance.mean(dim=0)[2]) < float(acceptance.mean(dim=0)[0]) < 0.95


def test_greedy_texts_are_the_trunks(make_model):
    model = make_model()
    texts = write_texts(model, PROMPTS, 6)
    for prompt, text in zip(PROMPTS.tolist(), texts.tolist(), strict=True):
        for _ in range(6):
            prompt.append(next_token(model, prompt))
        assert text == prompt


def test_sampled_texts_follow_their_generator(make_model, global_rng_untouched):
    model = make_model()
    with global_rng_untouched():
        first, second = (write_texts(model, PROMPTS, 8, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(first, second)
    assert not torch.equal(first, write_texts(model, PROMPTS, 8, torch.Generator().manual_seed(1)))


def speculative(model, prefix: list[int], drafts: list[int]) -> list[float]:
    """P(the next drafts are accepted up to depth k), k = 2 .. K, over everything that may be drafted after ``drafts``.

    The process itself: the token ahead is the trunk's sample; then depth after depth x ~ q, kept with min(1, p/q).
    """
    depth = len(drafts) + 1
    if depth > model.config.depth:
        return []
    text = torch.tensor([prefix + drafts])
    p = model.trunk(text).logits[0, -1].softmax(dim=-1).tolist()
    if not drafts:
        branches = [(p[x], speculative(model, prefix, [x])) for x in range(3)]
        return [sum(weight * later[k] for weight, later in branches) for k in range(model.config.depth - 1)]
    q = model.logits_of(model.latents(text)[depth - 1][0, len(prefix) - 1], depth).softmax(dim=-1).tolist()
    kept = [q[x] * min(1.0, p[x] / q[x]) for x in range(3)]
    later = [speculative(model, prefix, [*drafts, x]) for x in range(3)]
    return [sum(kept), *(sum(kept[x] * later[x][k] for x in range(3)) for k in range(len(later[0])))]


@pytest.mark.parametrize("head", KINDS)
@torch.no_grad()
def test_sampled_acceptance_is_that_of_the_speculative_process(make_model, head):
    # Everything the trunk may write in K = 3 tokens, weighted by how likely it is: the expectation, exactly. float32 is
    # what acceptance is computed in, so 27 terms agree to some 1e-6.
    model, prefix = make_model(head, vocab_size=3, depth=3, dtype=torch.float64), [1, 0, 2, 2]
    texts = torch.tensor([prefix + list(written) for written in itertools.product(range(3), repeat=3)])
    logprobs = model.trunk(texts).logits.log_softmax(dim=-1)[:, 3:-1]
    weights = logprobs.gather(2, texts[:, 4:, None]).sum(dim=(1, 2)).exp()
    found = (weights[:, None] * sampled_acceptance(model, texts, 4)).sum(dim=0)
    expected = speculative(model, prefix, [])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    # What was accepted is not distributed as p: without the weights the second depth would differ.
    latents = model.latents(texts)
    p, q = (model.logits_of(latents[0])[:, 5], model.logits_of(latents[2], 3)[:, 3])
    overlap = torch.minimum(p.softmax(dim=-1), q.softmax(dim=-1)).sum(dim=-1)
    assert abs(float((weights * overlap).sum()) * expected[0] - expected[1]) > 1e-3


@pytest.mark.parametrize("measure", [greedy_acceptance, sampled_acceptance])
def test_what_cannot_be_measured(make_model, measure):
    texts = torch.zeros((1, 8), dtype=torch.long)
    assert measure(make_model(), texts, 4).shape == (1, 3)  # t = 3 alone has four tokens after it
    with pytest.raises(ValueError, match=r"texts of 8 tokens with prompts of 5 leave no .*write more"):
        measure(make_model(), texts, 5)
    with pytest.raises(ValueError, match="depth=1 and stride=1: acceptance is of the tokens 2, 3"):
        measure(make_model(depth=1), texts, 2)
    with pytest.raises(ValueError, match="depth=3 and stride=2"):
        measure(make_model("linear", depth=3, stride=2), texts, 2)
