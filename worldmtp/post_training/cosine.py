"""Whether the heads' loss pulls the trunk where the trainer's own loss does: the cosine of their gradients.

Du et al. 2018, https://arxiv.org/abs/1812.02224, switch an auxiliary loss off where it is negative; here it is logged.
Taken by the weights of the trunk's last layer: a backward pass to there is short, and every signal to the layers below
goes through it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.model import MTPModel
from worldmtp.model.trunk import layer_list


def last_layer_weights(model: MTPModel) -> list[Tensor]:
    """Return what is trained of the trunk's last layer."""
    return [weight for weight in layer_list(model.base_model)[-1].parameters() if weight.requires_grad]


def gradient_cosine(
    first: Float[Tensor, ""], second: Float[Tensor, ""], weights: Sequence[Tensor]
) -> Float[Tensor, ""]:
    """Return cos(d first / d weights, d second / d weights); NaN where one of them has no gradient there.

    The graphs are kept for the backward pass that follows.
    """
    undefined = torch.full((), torch.nan, device=first.device)
    if not weights or not (first.requires_grad and second.requires_grad):
        return undefined
    ours, theirs = (
        torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True) for loss in (first, second)
    )
    pairs = [(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True)]
    dot = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    norms = [torch.stack([part.square().sum() for part in parts]).sum().sqrt() for parts in zip(*pairs, strict=True)]
    length = norms[0] * norms[1]
    return torch.where(length > 0, dot / length, undefined)


class GradientCosines:
    """The cosines of some micro-batches, on the device until they are taken."""

    def __init__(self) -> None:
        self._cosines: list[Tensor] = []

    def add(self, of_processes: Float[Tensor, " process"]) -> None:
        """Keep the mean over the processes that have one."""
        self._cosines.append(of_processes.nanmean())

    def take(self) -> list[float]:
        """Return those that are defined since the last take."""
        cosines, self._cosines = self._cosines, []
        return [cosine for cosine in torch.stack(cosines).tolist() if math.isfinite(cosine)] if cosines else []
