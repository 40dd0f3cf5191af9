"""Fused losses: precision, memory, mutants that must be seen, and what is refused."""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from worldmtp.objective import sweep as depth_sweep
from worldmtp.objective import token_losses
from worldmtp.objective.fused import LossTerms, Teacher

BATCH, TIME, HIDDEN, VOCAB, DEPTHS = 2, 7, 5, 11, 3
ALL_TERMS = LossTerms(ce=0.7, kl=0.5, tv=0.3, e2e_tv=0.9, latent=1.1, latent_beta=0.8, nla=0.4, lk_hybrid=0.6)
TERMS = {
    "ce": LossTerms(),
    "kl": LossTerms(ce=0.0, kl=1.0),
    "tv": LossTerms(ce=0.0, tv=1.0),
    "e2e_tv": LossTerms(ce=0.0, e2e_tv=1.0),
    "latent": LossTerms(ce=0.0, latent=1.0, latent_beta=0.5),
    "nla": LossTerms(ce=0.0, nla=1.0),
    "lk_hybrid": LossTerms(ce=0.0, lk_hybrid=1.0),
    "all": ALL_TERMS,
}


# ---------------------------------------------------------------------------------------------------------------------
# Precision
# ---------------------------------------------------------------------------------------------------------------------


def test_bfloat16_weights_lose_only_their_own_rounding(cases):
    half = cases.make_case(dtype=torch.bfloat16)
    exact = cases.make_case()
    for leaf, rounded in zip(exact.leaves(), half.leaves(), strict=True):
        leaf.data = rounded.data.double()
    loss, sums = half.loss(ALL_TERMS)
    expected, _ = exact.loss(ALL_TERMS)
    assert loss.dtype == sums.ce.dtype == torch.float32
    # Logits and gradients are rounded to 8 bits once each: 2^-8 of the largest, and some for their sum.
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    for one, other in zip(half.gradients(loss), exact.gradients(expected), strict=True):
        if other is not None:
            assert one.dtype == torch.bfloat16
            assert (one.double() - other).abs().max() < 0.03 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(cases, dtype):
    case = cases.make_case(dtype=torch.float32)
    expected, _ = case.loss(ALL_TERMS)
    seen = []

    def transform(logits: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return logits

    with torch.autocast("cpu", dtype=dtype):
        loss, _ = case.loss(ALL_TERMS, transform=transform)
        gradients = case.gradients(loss)
    assert set(seen) == {torch.float32}
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert loss.item() != expected.item()  # the products were narrow
    for one, other in zip(gradients, case.gradients(expected), strict=True):
        if other is not None:
            assert one.dtype == torch.float32
            assert (one - other).abs().max() < 0.03 * other.abs().max()


def test_float16_gradients_survive_small_weights(cases):
    case = cases.make_case(dtype=torch.float32)
    tiny = [1e-9 * weight for weight in case.weights]  # one over a number of tokens; 6e-8 is float16's smallest
    with torch.autocast("cpu", dtype=torch.float16):
        small = case.gradients(case.loss(LossTerms(), weights=tiny)[0])
        full = case.gradients(case.loss(LossTerms())[0])
    for one, other in zip(small, full, strict=True):
        if other is not None:
            assert torch.allclose(1e9 * one, other, rtol=1e-2, atol=1e-3 * other.abs().max().item())


def test_float16_latents_are_scaled_before_they_are_rounded(cases):
    case = cases.make_case(dtype=torch.float16)
    tiny = [1e-9 * weight for weight in case.weights]
    scaled = case.gradients(1e9 * case.loss(LossTerms(), weights=tiny)[0])  # as a gradient scaler does
    full = case.gradients(case.loss(LossTerms())[0])
    for one, other in zip(scaled, full, strict=True):
        if other is not None:
            assert one.dtype == torch.float16
            assert torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3 * other.abs().max().item())


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


class LiveLogits(TorchDispatchMode):
    """The most bytes that tensors with a last axis of ``vocab`` held at one time; views share their storage's."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.live, self.peak = vocab, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.ndim and value.shape[-1] == self.vocab:
                storage = value.untyped_storage()
                key = storage.data_ptr()
                if key and key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def peak_logits(cases, loss_of: Callable[..., Tensor], depths: int) -> int:
    generator = torch.Generator().manual_seed(0)
    vocab, time = 97, 64
    layer = cases.linear_of(nn.Parameter(torch.randn(vocab, HIDDEN, generator=generator)))
    mask = torch.ones(1, time, depths, dtype=torch.bool)
    mask[:, -depths:] = False
    case = cases.Case(
        latents=[torch.randn(1, time, HIDDEN, generator=generator).requires_grad_() for _ in range(depths)],
        layers=[layer] * depths,
        targets=torch.randint(0, vocab, mask.shape, generator=generator),
        mask=mask,
        teacher=Teacher(torch.randn(1, time, HIDDEN, generator=generator), layer, tuple(range(1, depths + 1))),
        weights=[1.0] * depths,
    )
    with LiveLogits(vocab) as live:
        loss_of(case).backward()
    return live.peak // (vocab * 4)  # tokens


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_logits_in_memory_do_not_grow_with_depths(cases, terms):
    def fused(case) -> Tensor:
        return case.loss(terms, chunk_size=8)[0]

    def naive(case) -> Tensor:
        return sum(layer(x).logsumexp(-1).sum() for layer, x in zip(case.layers, case.latents, strict=True))

    assert peak_logits(cases, naive, 8) >= 8 * 64  # what is measured does see them
    two, eight = peak_logits(cases, fused, 2), peak_logits(cases, fused, 8)
    assert eight <= two + 8  # rows whose label may be the argmax are copied, fewer than a chunk, as the data has it
    # Chunks of 8: student, its probabilities and those rows; with a teacher two more and intermediate results. The
    # weight is seen too, 5 tokens large, where it is transposed.
    assert eight <= 5 + 8 * (3 if terms.need_teacher is False else 8)


# ---------------------------------------------------------------------------------------------------------------------
# Mutants: what must not pass unseen
# ---------------------------------------------------------------------------------------------------------------------


def parity_gap(cases, case, terms: LossTerms, **naive: object) -> float:
    loss, _ = case.loss(terms)
    expected = cases.naive_loss(case, terms, **naive)
    pairs = zip([loss, *case.gradients(loss)], [expected, *case.gradients(expected)], strict=True)
    return max((one - other).abs().max().item() for one, other in pairs if one is not None and other is not None)


def test_mutant_product_runs_on_past_an_invalid_depth(cases):
    terms = LossTerms(ce=0.0, e2e_tv=1.0)
    assert parity_gap(cases, cases.make_case(), terms) < 1e-12
    assert parity_gap(cases, cases.make_case(), terms, invalid_ends=False) > 1e-3


@pytest.mark.parametrize(
    ("owner", "name", "mutate"),
    [
        # The derivative by a_j without what stands before it.
        (depth_sweep, "acceptance_gradient", lambda right: lambda a: torch.ones_like(a)),
        # The gradient of a second depth replaces that of the first.
        (
            depth_sweep.DepthSweep,
            "add_product_",
            lambda right: lambda self, total, *rest: right(self, total.zero_(), *rest),
        ),
        # Only the first chunk teaches the output layer.
        (
            depth_sweep.DepthSweep,
            "add_product_",
            lambda right: lambda self, total, *rest: None if total.any() else right(self, total, *rest),
        ),
        # The teacher stands where the student does.
        (
            depth_sweep.SweptDepth,
            "chunks",
            lambda right: lambda self, size: ((rows, rows) for rows, _ in right(self, size)),
        ),
        (depth_sweep, "smooth_l1_gradient", lambda right: lambda *a: right(*a) * HIDDEN),
        # The label's logit gets no push up.
        (token_losses.TokenLosses, "student_gradient_", lambda right: lambda self, w: right(self, replace(w, ce=0.0))),
    ],
)
def test_mutants_are_seen(cases, monkeypatch, owner, name, mutate):
    assert parity_gap(cases, cases.make_case(), ALL_TERMS) < 1e-12
    monkeypatch.setattr(owner, name, mutate(getattr(owner, name)))
    assert parity_gap(cases, cases.make_case(), ALL_TERMS) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Border
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": [1.0]}, ValueError, r"depths were given as .*'weights': 1.*must agree"),
        ({"chunk_size": 0}, ValueError, r"chunk_size=0 .* at least 1"),
        ({"teacher": None}, ValueError, r"compares with a teacher and none was given"),
        ({"weights": [torch.tensor(1.0, requires_grad=True)] * 3}, ValueError, r"requires a gradient.*detach it"),
    ],
)
def test_refused_arguments(cases, options, error, message):
    with pytest.raises(error, match=message):
        cases.make_case().loss(ALL_TERMS, **options)


def test_refuses_what_is_not_plain_linear(cases):
    class Adapted(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return 2 * super().forward(states)

    case = cases.make_case()
    case.layers[1] = Adapted(HIDDEN, VOCAB, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"an output layer is a Adapted; only weight and bias"):
        case.loss(LossTerms())


def test_refuses_a_teacher_beyond_the_end(cases):
    case = cases.make_case()
    case.mask[0, TIME - 1, 1] = True
    with pytest.raises(ValueError, match=r"offset=2 has its teacher at a position beyond the 7"):
        case.loss(ALL_TERMS)


def test_refuses_another_vocabulary_than_the_teachers(cases):
    case = cases.make_case(shared=False)
    case.layers[1] = cases.linear_of(torch.zeros(4, HIDDEN, dtype=torch.float64))
    case.targets = case.targets.clamp_max(3)
    case.loss(LossTerms(latent=1.0))  # which compares no distributions
    with pytest.raises(ValueError, match=r"vocabularies \[11, 4, 11\] and the teacher 11"):
        case.loss(ALL_TERMS)


def test_refuses_offsets_that_do_not_fit(cases):
    case = cases.make_case()
    with pytest.raises(ValueError, match=r"offsets=\(1, 2\); give each of the 3 depths one"):
        case.loss(ALL_TERMS, teacher=replace(case.teacher, offsets=(1, 2)))


def test_refuses_two_dtypes_outside_autocast(cases):
    case = cases.make_case()
    case.latents = [latent.detach().float() for latent in case.latents]
    with pytest.raises(ValueError, match=r"dtypes \['torch.float32', 'torch.float64'\]; cast them"):
        case.loss(LossTerms(), teacher=None)


def test_refuses_latents_of_two_lengths(cases):
    case = cases.make_case()
    case.latents[2] = case.latents[2][:, 1:]
    # Run-time type checks look at one of the three at random, and may be the first to see it.
    ours = r"latents\[2\] has the shape \(2, 6, 5\), latents\[0\] \(2, 7, 5\)"
    with pytest.raises((ValueError, BeartypeCallHintParamViolation), match=f"{ours}|dimension time"):
        case.loss(LossTerms())


def test_refuses_a_beta_that_is_not_positive():
    with pytest.raises(ValueError, match=r"latent_beta=0.0 .* must be positive"):
        LossTerms(latent_beta=0.0)
