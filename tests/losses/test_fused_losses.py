"""Fused losses against values by hand and a naive evaluation with every logit held; memory; what gets no gradient."""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from worldmtp import depth_sweep, fused_losses, token_losses
from worldmtp.fused_losses import LossTerms, Teacher, summed_depth_losses

BATCH, TIME, HIDDEN, VOCAB, DEPTHS = 2, 7, 5, 11, 3
ALL_TERMS = LossTerms(ce=0.7, kl=0.5, tv=0.3, e2e_tv=0.9, latent=1.1, latent_beta=0.8)
TERMS = {
    "ce": LossTerms(),
    "kl": LossTerms(ce=0.0, kl=1.0),
    "tv": LossTerms(ce=0.0, tv=1.0),
    "e2e_tv": LossTerms(ce=0.0, e2e_tv=1.0),
    "latent": LossTerms(ce=0.0, latent=1.0, latent_beta=0.5),
    "all": ALL_TERMS,
}


@dataclass
class Case:
    """Everything a call needs; the tensors are leaves."""

    latents: list[Tensor]
    layers: list[nn.Linear]
    targets: Tensor
    mask: Tensor
    teacher: Teacher
    weights: list[float]

    def loss(self, terms: LossTerms, **options: object) -> tuple[Tensor, fused_losses.DepthSums]:
        defaults = {
            "weights": self.weights,
            "teacher": self.teacher,
            "detach_output": [False] * len(self.latents),
            "chunk_size": 4,
            "with_acceptance": False,
        }
        return summed_depth_losses(
            self.latents, self.layers, self.targets, self.mask, terms=terms, **(defaults | options)
        )

    def leaves(self) -> list[Tensor]:
        parameters = {id(p): p for layer in self.layers for p in layer.parameters()}
        return [*self.latents, *parameters.values(), self.teacher.hidden]

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, self.leaves(), allow_unused=True))


def make_case(
    shared: bool = True, bias: bool = True, depths: int = DEPTHS, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    def layer() -> nn.Linear:
        return linear_of(nn.Parameter(randn(VOCAB, HIDDEN)), nn.Parameter(randn(VOCAB)) if bias else None)

    lm_head = layer()
    mask = torch.rand(BATCH, TIME, depths, generator=generator) < 0.7  # with holes, not only at the end
    for k in range(depths):
        mask[:, TIME - 1 - k :, k] = False
    targets = torch.randint(0, VOCAB, mask.shape, generator=generator).masked_fill(~mask, -100)
    return Case(
        latents=[randn(BATCH, TIME, HIDDEN).requires_grad_() for _ in range(depths)],
        layers=[lm_head if shared else layer() for _ in range(depths)],
        targets=targets,
        mask=mask,
        teacher=Teacher(
            randn(BATCH, TIME, HIDDEN).requires_grad_(), lm_head, offsets=tuple(range(1, depths + 1)), detach=True
        ),
        weights=[1.0, 0.3, 2.5, 0.7][:depths],
    )


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer on given tensors, which need not be parameters (as under a parametrisation)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # no global generator is drawn from
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias
    return layer


def naive_loss(
    case: Case,
    terms: LossTerms,
    transform: Callable[[Tensor], Tensor] = lambda z: z,
    detach_output: Sequence[bool] = (False,) * 9,
    invalid_ends: bool = True,
) -> Tensor:
    """The definition, token by token, from probabilities; nothing of it is shared with the code under test."""
    hidden = case.teacher.hidden.detach() if case.teacher.detach else case.teacher.hidden
    head = case.teacher.output_layer
    total = torch.zeros((), dtype=hidden.dtype)
    mean_weight = sum(case.weights) / len(case.weights)
    for b in range(case.mask.shape[0]):
        for t in range(case.mask.shape[1]):
            product, alive = torch.ones((), dtype=hidden.dtype), True
            for k, latent in enumerate(case.latents):
                if not case.mask[b, t, k]:
                    alive = alive and not invalid_ends
                    continue
                layer, ahead = case.layers[k], t + case.teacher.offsets[k] - 1
                weight, bias = layer.weight, layer.bias
                if detach_output[k]:
                    weight, bias = weight.detach(), None if bias is None else bias.detach()
                logits = latent[b, t] @ weight.T
                teacher_logits = hidden[b, ahead] @ head.weight.detach().T
                if bias is not None:
                    logits, teacher_logits = logits + bias, teacher_logits + head.bias.detach()
                q, p = (torch.softmax(transform(z), dim=-1) for z in (logits, teacher_logits))
                accepted = torch.where(p < q, p, q).sum()
                gap = (latent[b, t] - hidden[b, ahead]).abs()
                beta = terms.latent_beta
                composed = -terms.ce * q[case.targets[b, t, k]].log() + terms.kl * (p * (p / q).log()).sum()
                composed = composed + terms.tv * 0.5 * (p - q).abs().sum()
                composed = composed + terms.latent * torch.where(gap < beta, gap**2 / (2 * beta), gap - beta / 2).mean()
                total = total + case.weights[k] * composed
                product = product * accepted if alive else product * 0
                total = total + terms.e2e_tv * mean_weight * (1 - product)
    return total


def assert_same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None], atol: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            given = one if other is None else other
            assert given is None or not given.any()
        else:
            assert torch.allclose(one, other, rtol=0, atol=atol), (one - other).abs().max()


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


def by_hand(*rows: tuple[float, ...]) -> Tensor:
    """Latents of one sequence whose logits, through a unit matrix, are these logs of probabilities."""
    return torch.tensor([rows], dtype=torch.float64).log()


@pytest.fixture
def unit_layer() -> nn.Linear:
    return linear_of(nn.Parameter(torch.eye(2, dtype=torch.float64)))


def test_values_by_hand(unit_layer):
    # Depth 1: q = (1/4, 3/4), then (1/2, 1/2), labels 1, 0;  p = (3/4, 1/4), then (1/2, 1/2).
    # Depth 2, valid at t = 0 only: q = (3/4, 1/4), label 0; its teacher stands at t = 1, p = (1/2, 1/2).
    latents = [by_hand((0.25, 0.75), (0.5, 0.5)), by_hand((0.75, 0.25), (0.5, 0.5))]
    hidden = by_hand((0.75, 0.25), (0.5, 0.5))
    _, sums = summed_depth_losses(
        latents,
        [unit_layer, unit_layer],
        torch.tensor([[[1, 0], [0, -100]]]),
        torch.tensor([[[True, True], [True, False]]]),
        weights=[1.0, 1.0],
        terms=LossTerms(),
        teacher=Teacher(hidden, unit_layer, (1, 2)),
        detach_output=[False, False],
        chunk_size=8,
        with_acceptance=True,
    )
    log = math.log
    assert sums.counts.tolist() == [2, 1]
    assert sums.ce.tolist() == pytest.approx([log(4 / 3) + log(2), log(4 / 3)], abs=1e-14)
    # kl: 3/4 log 3 + 1/4 log(1/3) = 1/2 log 3, then 0;  1/2 log(2/3) + 1/2 log 2
    assert sums.kl.tolist() == pytest.approx([log(3) / 2, log(2 / 3) / 2 + log(2) / 2], abs=1e-14)
    # accepted: 1/4 + 1/4, then 1;  1/2 + 1/4
    assert sums.accepted.tolist() == pytest.approx([1.5, 0.75], abs=1e-14)
    assert sums.tv.tolist() == pytest.approx([0.5, 0.25], abs=1e-14)
    # hits: 3/4 is label 1's; of two equal ones the first, label 0, counts;  3/4 is label 0's.
    assert sums.top1_hits.tolist() == [2, 1]
    # latents: depth 1 at t = 0 by log 3 twice, which is beyond beta = 1: log 3 - 1/2, then 0.
    # depth 2: log(3/2) and log(1/2), squared, halved and averaged.
    assert sums.latent.tolist() == pytest.approx([log(3) - 0.5, (log(1.5) ** 2 + log(2) ** 2) / 4], abs=1e-14)


def test_end_to_end_loss_by_hand(unit_layer):
    # As above: a_1 = 1/2 and a_2 = 3/4 at t = 0, a_1 = 1 at t = 1 where depth 2 is invalid.
    # t = 0: 2 - (1/2 + 3/8) = 9/8;  t = 1: 1 - 1 = 0.  Mean weight (1 + 3) / 2 = 2, coefficient 1/2.
    loss, _ = summed_depth_losses(
        [by_hand((0.25, 0.75), (0.5, 0.5)), by_hand((0.75, 0.25), (0.5, 0.5))],
        [unit_layer, unit_layer],
        torch.tensor([[[1, 0], [0, -100]]]),
        torch.tensor([[[True, True], [True, False]]]),
        weights=[1.0, torch.tensor(3.0)],
        terms=LossTerms(ce=0.0, e2e_tv=0.5),
        teacher=Teacher(by_hand((0.75, 0.25), (0.5, 0.5)), unit_layer, (1, 2)),
        detach_output=[False, False],
        chunk_size=8,
        with_acceptance=False,
    )
    assert loss.item() == pytest.approx(9 / 8, abs=1e-14)


def test_of_equal_logits_the_first_is_the_argmax():
    # An output layer of zeros predicts token 0 everywhere; "the label's logit is maximal" would hit always.
    case = make_case(bias=False)
    nn.init.zeros_(case.layers[0].weight)
    _, sums = case.loss(LossTerms())
    expected = ((case.targets == 0) & case.mask).sum(dim=(0, 1))
    assert 0 < expected.sum() < case.mask.sum()
    assert sums.top1_hits.tolist() == expected.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Parity with the definition
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_equals_the_definition(terms, shared, detach):
    case = make_case(shared=shared)
    case.teacher = replace(case.teacher, detach=detach)
    loss, _ = case.loss(terms)
    expected = naive_loss(case, terms)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert_same(case.gradients(loss), case.gradients(expected))


@pytest.mark.parametrize("bias", [True, False])
def test_transform_is_differentiated_through(bias):
    def cap(logits: Tensor) -> Tensor:
        return 1.5 * torch.tanh(logits / 1.5)

    case = make_case(bias=bias)
    case.teacher = replace(case.teacher, detach=False)
    loss, _ = case.loss(ALL_TERMS, transform=cap)
    expected = naive_loss(case, ALL_TERMS, transform=cap)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert_same(case.gradients(loss), case.gradients(expected))


@pytest.mark.parametrize("chunk_size", [1, 3, 10**9])
def test_chunk_size_changes_nothing(chunk_size):
    case = make_case()
    loss, sums = case.loss(ALL_TERMS, chunk_size=chunk_size, with_acceptance=True)
    whole, whole_sums = case.loss(ALL_TERMS, chunk_size=8, with_acceptance=True)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    assert_same(case.gradients(loss), case.gradients(whole))
    for name, value in vars(sums).items():
        assert torch.allclose(value.double(), vars(whole_sums)[name].double(), rtol=0, atol=1e-12), name


@pytest.mark.parametrize("detach", [True, False])
def test_gradcheck(detach):
    case = make_case(depths=2, seed=3)

    def loss(*leaves: Tensor) -> Tensor:
        head = linear_of(leaves[2], leaves[3])
        tried = replace(case, latents=list(leaves[:2]), layers=[head, head])
        tried.teacher = replace(case.teacher, hidden=leaves[4], detach=detach)
        return tried.loss(ALL_TERMS)[0]

    leaves = [leaf.detach().clone().requires_grad_() for leaf in case.leaves()]
    if detach:
        leaves[4].requires_grad_(False)
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_all_positions_valid():
    case = make_case(depths=1)
    case.mask = torch.ones_like(case.mask)
    case.targets = case.targets.clamp_min(0)
    for terms in (LossTerms(), ALL_TERMS):
        loss, _ = case.loss(terms)
        expected = naive_loss(case, terms)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
        assert_same(case.gradients(loss), case.gradients(expected))


def test_stride_puts_the_teacher_further_ahead():
    case = make_case(depths=2)
    case.mask[:, TIME - 3 :] = False
    case.teacher = replace(case.teacher, offsets=(1, 3))
    loss, _ = case.loss(ALL_TERMS)
    expected = naive_loss(case, ALL_TERMS)
    assert_same([loss, *case.gradients(loss)], [expected, *case.gradients(expected)])


def test_non_contiguous_latents():
    case = make_case()
    loss, _ = case.loss(ALL_TERMS)
    expected = [loss, *case.gradients(loss)]
    case.latents = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in case.latents]
    assert not case.latents[0].is_contiguous()
    loss, _ = case.loss(ALL_TERMS)
    assert_same([loss, *case.gradients(loss)], expected)


def test_ce_alone_is_torchs_and_needs_no_teacher():
    case = make_case()
    loss, sums = case.loss(LossTerms(), teacher=None)
    expected = [
        functional.cross_entropy(case.layers[k](x).flatten(0, 1), case.targets[:, :, k].flatten(), reduction="sum")
        for k, x in enumerate(case.latents)
    ]
    assert sums.ce.tolist() == pytest.approx([value.item() for value in expected], abs=1e-12)
    total = sum(w * value for w, value in zip(case.weights, expected, strict=True))
    assert_same([loss, *case.gradients(loss)], [total, *case.gradients(total)])
    for name in ("kl", "tv", "latent", "accepted"):
        assert not getattr(sums, name).any()


def test_measuring_does_not_change_the_loss():
    case = make_case()
    loss, sums = case.loss(LossTerms(), with_acceptance=True)
    plain, unmeasured = case.loss(LossTerms())
    assert torch.equal(loss, plain)
    assert sums.accepted.all()
    assert not unmeasured.accepted.any()
    assert torch.allclose(sums.tv, sums.counts - sums.accepted, rtol=0, atol=1e-12)
    assert not any(value.requires_grad for value in vars(sums).values())


# ---------------------------------------------------------------------------------------------------------------------
# What gets no gradient
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_detached_output_gets_exactly_nothing(shared):
    case = make_case(shared=shared)
    case.loss(ALL_TERMS, detach_output=[True] * DEPTHS)[0].backward()
    assert all(p.grad is None for layer in case.layers for p in layer.parameters())
    assert all(latent.grad.any() for latent in case.latents)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("detach_output", [(False, True, True), (True, False, True)])
def test_each_depth_is_detached_by_itself(shared, detach_output):
    case = make_case(shared=shared)
    loss, _ = case.loss(ALL_TERMS, detach_output=detach_output)
    expected = naive_loss(case, ALL_TERMS, detach_output=detach_output)
    assert_same([loss, *case.gradients(loss)], [expected, *case.gradients(expected)])


def test_a_detached_teacher_gets_nothing():
    case = make_case(shared=False)
    loss, _ = case.loss(LossTerms(ce=0.0, kl=1.0, tv=1.0, latent=1.0, e2e_tv=1.0), detach_output=[True] * DEPTHS)
    loss.backward()
    assert case.teacher.hidden.grad is None
    assert case.teacher.output_layer.weight.grad is None


class Products(TorchDispatchMode):
    """Counts matrix products whose result has the shape of the output weight."""

    def __init__(self) -> None:
        super().__init__()
        self.by_weight = 0
        self.all = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.all += 1
            self.by_weight += tuple(result.shape) == (VOCAB, HIDDEN)
        return result


def test_what_needs_no_gradient_costs_no_product():
    case = make_case(bias=False)

    def products(**options: object) -> tuple[int, int]:
        with Products() as counted:
            case.loss(LossTerms(), chunk_size=100, teacher=None, **options)
        return counted.all, counted.by_weight

    assert products() == (3 * DEPTHS, DEPTHS)  # logits, gradient by latents, gradient by the weight
    assert products(detach_output=[True] * DEPTHS) == (2 * DEPTHS, 0)
    case.latents = [latent.detach() for latent in case.latents]
    assert products() == (2 * DEPTHS, DEPTHS)
    with torch.no_grad():
        assert products() == (DEPTHS, 0)


def test_no_grad_gives_the_same_values():
    case = make_case()
    loss, sums = case.loss(ALL_TERMS)
    with torch.no_grad():
        value, same = case.loss(ALL_TERMS)
    assert not value.requires_grad
    assert torch.equal(value, loss)
    assert all(torch.equal(a, b) for a, b in zip(vars(sums).values(), vars(same).values(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Sums: nothing valid, accumulation, scaling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_no_valid_target_gives_zero_and_zero_gradients(terms):
    case = make_case()
    case.mask = torch.zeros_like(case.mask)
    case.teacher = replace(case.teacher, detach=False)
    loss, sums = case.loss(terms)
    loss.backward()
    assert loss.item() == 0.0
    assert not any(value.any() for value in vars(sums).values())
    leaves = case.leaves() if terms.need_teacher else case.leaves()[:-1]  # a teacher nobody asks is not in the graph
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)  # zeros, and not NaN


def test_accumulation_over_rows_equals_one_batch():
    case = make_case(seed=5)
    case.teacher = replace(case.teacher, detach=False)
    case.loss(ALL_TERMS)[0].backward()
    expected = [leaf.grad for leaf in case.leaves()]
    for leaf in case.leaves():
        leaf.grad = None
    for b in range(BATCH):
        row = slice(b, b + 1)
        part = replace(case, latents=[x[row] for x in case.latents], targets=case.targets[row], mask=case.mask[row])
        part.teacher = replace(case.teacher, hidden=case.teacher.hidden[row])
        part.loss(ALL_TERMS)[0].backward()
    assert_same([leaf.grad for leaf in case.leaves()], expected)


def test_gradients_scale_and_can_be_taken_twice():
    case = make_case()
    loss, _ = case.loss(ALL_TERMS)
    once = torch.autograd.grad(loss, case.leaves()[:-1], retain_graph=True)
    twice = torch.autograd.grad(3.0 * loss, case.leaves()[:-1])
    assert_same(twice, [3.0 * gradient for gradient in once])


def test_weights_may_be_tensors():
    case = make_case()
    loss, _ = case.loss(ALL_TERMS, weights=[torch.tensor(w, dtype=torch.float64) for w in case.weights])
    expected, _ = case.loss(ALL_TERMS)
    assert_same([loss, *case.gradients(loss)], [expected, *case.gradients(expected)])


# ---------------------------------------------------------------------------------------------------------------------
# Precision
# ---------------------------------------------------------------------------------------------------------------------


def test_bfloat16_weights_lose_only_their_own_rounding():
    half = make_case(dtype=torch.bfloat16)
    exact = make_case()
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
def test_autocast(dtype):
    case = make_case(dtype=torch.float32)
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


def test_float16_gradients_survive_small_weights():
    case = make_case(dtype=torch.float32)
    tiny = [1e-9 * weight for weight in case.weights]  # one over a number of tokens; 6e-8 is float16's smallest
    with torch.autocast("cpu", dtype=torch.float16):
        small = case.gradients(case.loss(LossTerms(), weights=tiny)[0])
        full = case.gradients(case.loss(LossTerms())[0])
    for one, other in zip(small, full, strict=True):
        if other is not None:
            assert torch.allclose(1e9 * one, other, rtol=1e-2, atol=1e-3 * other.abs().max().item())


def test_float16_latents_are_scaled_before_they_are_rounded():
    case = make_case(dtype=torch.float16)
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


def peak_logits(loss_of: Callable[[Case], Tensor], depths: int) -> int:
    generator = torch.Generator().manual_seed(0)
    vocab, time = 97, 64
    layer = linear_of(nn.Parameter(torch.randn(vocab, HIDDEN, generator=generator)))
    mask = torch.ones(1, time, depths, dtype=torch.bool)
    mask[:, -depths:] = False
    case = Case(
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
def test_logits_in_memory_do_not_grow_with_depths(terms):
    def fused(case: Case) -> Tensor:
        return case.loss(terms, chunk_size=8)[0]

    def naive(case: Case) -> Tensor:
        return sum(layer(x).logsumexp(-1).sum() for layer, x in zip(case.layers, case.latents, strict=True))

    assert peak_logits(naive, 8) >= 8 * 64  # what is measured does see them
    two, eight = peak_logits(fused, 2), peak_logits(fused, 8)
    assert eight <= two + 8  # rows whose label may be the argmax are copied, fewer than a chunk, as the data has it
    # Chunks of 8: student, its probabilities and those rows; with a teacher two more and intermediate results. The
    # weight is seen too, 5 tokens large, where it is transposed.
    assert eight <= 5 + 8 * (3 if terms.need_teacher is False else 8)


# ---------------------------------------------------------------------------------------------------------------------
# Mutants: what must not pass unseen
# ---------------------------------------------------------------------------------------------------------------------


def parity_gap(case: Case, terms: LossTerms, **naive: object) -> float:
    loss, _ = case.loss(terms)
    expected = naive_loss(case, terms, **naive)
    pairs = zip([loss, *case.gradients(loss)], [expected, *case.gradients(expected)], strict=True)
    return max((one - other).abs().max().item() for one, other in pairs if one is not None and other is not None)


def test_mutant_product_runs_on_past_an_invalid_depth():
    terms = LossTerms(ce=0.0, e2e_tv=1.0)
    assert parity_gap(make_case(), terms) < 1e-12
    assert parity_gap(make_case(), terms, invalid_ends=False) > 1e-3


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
        (
            token_losses.TokenLosses,
            "student_gradient_",
            lambda right: lambda self, w: right(self, replace(w, ce=0.0)),
        ),
    ],
)
def test_mutants_are_seen(monkeypatch, owner, name, mutate):
    assert parity_gap(make_case(), ALL_TERMS) < 1e-12
    monkeypatch.setattr(owner, name, mutate(getattr(owner, name)))
    assert parity_gap(make_case(), ALL_TERMS) > 1e-3


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
def test_refused_arguments(options, error, message):
    with pytest.raises(error, match=message):
        make_case().loss(ALL_TERMS, **options)


def test_refuses_what_is_not_plain_linear():
    class Adapted(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return 2 * super().forward(states)

    case = make_case()
    case.layers[1] = Adapted(HIDDEN, VOCAB, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"an output layer is a Adapted; only weight and bias"):
        case.loss(LossTerms())


def test_refuses_a_teacher_beyond_the_end():
    case = make_case()
    case.mask[0, TIME - 1, 1] = True
    with pytest.raises(ValueError, match=r"offset=2 has its teacher at a position beyond the 7"):
        case.loss(ALL_TERMS)


def test_refuses_another_vocabulary_than_the_teachers():
    case = make_case(shared=False)
    case.layers[1] = linear_of(torch.zeros(4, HIDDEN, dtype=torch.float64))
    case.targets = case.targets.clamp_max(3)
    case.loss(LossTerms(latent=1.0))  # which compares no distributions
    with pytest.raises(ValueError, match=r"vocabularies \[11, 4, 11\] and the teacher 11"):
        case.loss(ALL_TERMS)


def test_refuses_offsets_that_do_not_fit():
    case = make_case()
    with pytest.raises(ValueError, match=r"offsets=\(1, 2\); give each of the 3 depths one"):
        case.loss(ALL_TERMS, teacher=replace(case.teacher, offsets=(1, 2)))


def test_refuses_two_dtypes_outside_autocast():
    case = make_case()
    case.latents = [latent.detach().float() for latent in case.latents]
    with pytest.raises(ValueError, match=r"dtypes \['torch.float32', 'torch.float64'\]; cast them"):
        case.loss(LossTerms(), teacher=None)


def test_refuses_latents_of_two_lengths():
    case = make_case()
    case.latents[2] = case.latents[2][:, 1:]
    # Run-time type checks look at one of the three at random, and may be the first to see it.
    ours = r"latents\[2\] has the shape \(2, 6, 5\), latents\[0\] \(2, 7, 5\)"
    with pytest.raises((ValueError, TypeError), match=f"{ours}|f64\\[2,6,5\\]"):
        case.loss(LossTerms())


def test_refuses_a_beta_that_is_not_positive():
    with pytest.raises(ValueError, match=r"latent_beta=0.0 .* must be positive"):
        LossTerms(latent_beta=0.0)
