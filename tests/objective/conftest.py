"""Random problems for the fused losses, and their definition evaluated token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from worldmtp.objective.fused import DepthSums, LossTerms, Teacher, summed_depth_losses

BATCH, TIME, HIDDEN, VOCAB, DEPTHS = 2, 7, 5, 11, 3


@dataclass
class Case:
    """Everything a call needs; the tensors are leaves."""

    latents: list[Tensor]
    layers: list[nn.Linear]
    targets: Tensor
    mask: Tensor
    teacher: Teacher
    weights: list[float]

    def loss(self, terms: LossTerms, **options: object) -> tuple[Tensor, DepthSums]:
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
                share = torch.exp(-3 * accepted.detach())
                blended = share * (p * (p / q).log()).sum() + (1 - share) * 0.5 * (p - q).abs().sum()
                composed = composed - terms.nla * accepted.log() + terms.lk_hybrid * blended
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


@pytest.fixture(scope="session")
def cases() -> SimpleNamespace:
    return SimpleNamespace(
        Case=Case, make_case=make_case, linear_of=linear_of, naive_loss=naive_loss, assert_same=assert_same
    )
