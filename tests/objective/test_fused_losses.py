"""Fused losses against values by hand and a naive evaluation with every logit held; memory; what gets no gradient."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from worldmtp.objective.fused import LossTerms, Teacher, summed_depth_losses

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
# By hand
# ---------------------------------------------------------------------------------------------------------------------


def by_hand(*rows: tuple[float, ...]) -> Tensor:
    """Latents of one sequence whose logits, through a unit matrix, are these logs of probabilities."""
    return torch.tensor([rows], dtype=torch.float64).log()


@pytest.fixture
def unit_layer(cases) -> nn.Linear:
    return cases.linear_of(nn.Parameter(torch.eye(2, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        # q = (1/4, 3/4) and p = (3/4, 1/4) share 1/2; KL = 3/4 log 3 - 1/4 log 3 = log(3) / 2.
        (LossTerms(ce=0.0, nla=2.0), 2 * math.log(2)),
        (
            LossTerms(ce=0.0, lk_hybrid=1.0),
            math.exp(-1.5) * math.log(3) / 2 + (1 - math.exp(-1.5)) / 2,
        ),
    ],
)
def test_losses_of_the_acceptance_by_hand(unit_layer, terms, expected):
    loss, _ = summed_depth_losses(
        [by_hand((0.25, 0.75))],
        [unit_layer],
        torch.tensor([[[1]]]),
        torch.tensor([[[True]]]),
        weights=[1.0],
        terms=terms,
        teacher=Teacher(by_hand((0.75, 0.25)), unit_layer, (1,)),
        detach_output=[False],
        chunk_size=8,
        with_acceptance=False,
    )
    assert loss.item() == pytest.approx(expected, abs=1e-14)


def test_values_by_hand(cases, unit_layer):
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


def test_end_to_end_loss_by_hand(cases, unit_layer):
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


def test_of_equal_logits_the_first_is_the_argmax(cases):
    # An output layer of zeros predicts token 0 everywhere; "the label's logit is maximal" would hit always.
    case = cases.make_case(bias=False)
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
def test_equals_the_definition(cases, terms, shared, detach):
    case = cases.make_case(shared=shared)
    case.teacher = replace(case.teacher, detach=detach)
    loss, _ = case.loss(terms)
    expected = cases.naive_loss(case, terms)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    cases.assert_same(case.gradients(loss), case.gradients(expected))


@pytest.mark.parametrize("bias", [True, False])
def test_transform_is_differentiated_through(cases, bias):
    def cap(logits: Tensor) -> Tensor:
        return 1.5 * torch.tanh(logits / 1.5)

    case = cases.make_case(bias=bias)
    case.teacher = replace(case.teacher, detach=False)
    loss, _ = case.loss(ALL_TERMS, transform=cap)
    expected = cases.naive_loss(case, ALL_TERMS, transform=cap)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    cases.assert_same(case.gradients(loss), case.gradients(expected))


@pytest.mark.parametrize("chunk_size", [1, 3, 10**9])
def test_chunk_size_changes_nothing(cases, chunk_size):
    case = cases.make_case()
    loss, sums = case.loss(ALL_TERMS, chunk_size=chunk_size, with_acceptance=True)
    whole, whole_sums = case.loss(ALL_TERMS, chunk_size=8, with_acceptance=True)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    cases.assert_same(case.gradients(loss), case.gradients(whole))
    for name, value in vars(sums).items():
        assert torch.allclose(value.double(), vars(whole_sums)[name].double(), rtol=0, atol=1e-12), name


@pytest.mark.parametrize("detach", [True, False])
def test_gradcheck(cases, detach):
    case = cases.make_case(depths=2, seed=3)

    def loss(*leaves: Tensor) -> Tensor:
        head = cases.linear_of(leaves[2], leaves[3])
        tried = replace(case, latents=list(leaves[:2]), layers=[head, head])
        tried.teacher = replace(case.teacher, hidden=leaves[4], detach=detach)
        return tried.loss(replace(ALL_TERMS, lk_hybrid=0.0))[0]  # its share of KL is a constant to gradients alone

    leaves = [leaf.detach().clone().requires_grad_() for leaf in case.leaves()]
    if detach:
        leaves[4].requires_grad_(False)
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_all_positions_valid(cases):
    case = cases.make_case(depths=1)
    case.mask = torch.ones_like(case.mask)
    case.targets = case.targets.clamp_min(0)
    for terms in (LossTerms(), ALL_TERMS):
        loss, _ = case.loss(terms)
        expected = cases.naive_loss(case, terms)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
        cases.assert_same(case.gradients(loss), case.gradients(expected))


def test_stride_puts_the_teacher_further_ahead(cases):
    case = cases.make_case(depths=2)
    case.mask[:, TIME - 3 :] = False
    case.teacher = replace(case.teacher, offsets=(1, 3))
    loss, _ = case.loss(ALL_TERMS)
    expected = cases.naive_loss(case, ALL_TERMS)
    cases.assert_same([loss, *case.gradients(loss)], [expected, *case.gradients(expected)])


def test_non_contiguous_latents(cases):
    case = cases.make_case()
    loss, _ = case.loss(ALL_TERMS)
    expected = [loss, *case.gradients(loss)]
    case.latents = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in case.latents]
    assert not case.latents[0].is_contiguous()
    loss, _ = case.loss(ALL_TERMS)
    cases.assert_same([loss, *case.gradients(loss)], expected)


def test_ce_alone_is_torchs_and_needs_no_teacher(cases):
    case = cases.make_case()
    loss, sums = case.loss(LossTerms(), teacher=None)
    expected = [
        functional.cross_entropy(case.layers[k](x).flatten(0, 1), case.targets[:, :, k].flatten(), reduction="sum")
        for k, x in enumerate(case.latents)
    ]
    assert sums.ce.tolist() == pytest.approx([value.item() for value in expected], abs=1e-12)
    total = sum(w * value for w, value in zip(case.weights, expected, strict=True))
    cases.assert_same([loss, *case.gradients(loss)], [total, *case.gradients(total)])
    for name in ("kl", "tv", "latent", "accepted"):
        assert not getattr(sums, name).any()


def test_measuring_does_not_change_the_loss(cases):
    case = cases.make_case()
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
def test_detached_output_gets_exactly_nothing(cases, shared):
    case = cases.make_case(shared=shared)
    case.loss(ALL_TERMS, detach_output=[True] * DEPTHS)[0].backward()
    assert all(p.grad is None for layer in case.layers for p in layer.parameters())
    assert all(latent.grad.any() for latent in case.latents)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("detach_output", [(False, True, True), (True, False, True)])
def test_each_depth_is_detached_by_itself(cases, shared, detach_output):
    case = cases.make_case(shared=shared)
    loss, _ = case.loss(ALL_TERMS, detach_output=detach_output)
    expected = cases.naive_loss(case, ALL_TERMS, detach_output=detach_output)
    cases.assert_same([loss, *case.gradients(loss)], [expected, *case.gradients(expected)])


def test_a_detached_teacher_gets_nothing(cases):
    case = cases.make_case(shared=False)
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


def test_what_needs_no_gradient_costs_no_product(cases):
    case = cases.make_case(bias=False)

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


def test_no_grad_gives_the_same_values(cases):
    case = cases.make_case()
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
def test_no_valid_target_gives_zero_and_zero_gradients(cases, terms):
    case = cases.make_case()
    case.mask = torch.zeros_like(case.mask)
    case.teacher = replace(case.teacher, detach=False)
    loss, sums = case.loss(terms)
    loss.backward()
    assert loss.item() == 0.0
    assert not any(value.any() for value in vars(sums).values())
    leaves = case.leaves() if terms.need_teacher else case.leaves()[:-1]  # a teacher nobody asks is not in the graph
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)  # zeros, and not NaN


def test_accumulation_over_rows_equals_one_batch(cases):
    case = cases.make_case(seed=5)
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
    cases.assert_same([leaf.grad for leaf in case.leaves()], expected)


def test_gradients_scale_and_can_be_taken_twice(cases):
    case = cases.make_case()
    loss, _ = case.loss(ALL_TERMS)
    once = torch.autograd.grad(loss, case.leaves()[:-1], retain_graph=True)
    twice = torch.autograd.grad(3.0 * loss, case.leaves()[:-1])
    cases.assert_same(twice, [3.0 * gradient for gradient in once])


def test_weights_may_be_tensors(cases):
    case = cases.make_case()
    loss, _ = case.loss(ALL_TERMS, weights=[torch.tensor(w, dtype=torch.float64) for w in case.weights])
    expected, _ = case.loss(ALL_TERMS)
    cases.assert_same([loss, *case.gradients(loss)], [expected, *case.gradients(expected)])
