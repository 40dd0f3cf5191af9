"""Multi-token losses: cross-entropy per depth as a sum and a count, and how depths combine.

Sums and counts, not means: gradient accumulation is exact only when every micro-batch divides by the whole batch's
number of targets (``num_items``).

    L = L_1 + coef * 1/(K-1) * sum_{k=2..K} L_k            (DeepSeek-V3, arXiv 2412.19437, eq. 24-25, with D = K - 1)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class DepthLosses:
    """Per depth, the sum of cross-entropies over its valid targets, and how many there are."""

    sums: Float[Tensor, " depth"]
    counts: Int[Tensor, " depth"]

    @property
    def means(self) -> Float[Tensor, " depth"]:
        """Mean per target; zero where a depth has none."""
        return self.sums / self.counts.clamp_min(1)


def depth_cross_entropy(
    logits: Sequence[Float[Tensor, "batch time vocab"]],
    targets: Int[Tensor, "batch time depth"],
    mask: Bool[Tensor, "batch time depth"],
) -> DepthLosses:
    """Cross-entropy of each depth's logits with its targets, over the mask.

    Raises:
        ValueError: as many logits as depths are needed.
    """
    _check_num_depths(len(logits), targets)
    sums = [_masked_sum(logits[k][mask[:, :, k]], targets[:, :, k][mask[:, :, k]]) for k in range(len(logits))]
    return DepthLosses(sums=torch.stack(sums), counts=mask.sum(dim=(0, 1)))


def combination_weights(
    counts: Int[Tensor, " depth"],
    mtp_loss_coef: float,
    num_items: int | Int[Tensor, ""] | Int[Tensor, " depth"] | None = None,
) -> Float[Tensor, " depth"]:
    """What each depth's sum is multiplied by in ``combine_depth_losses``: the same loss, as weights of sums."""
    divisor = counts if num_items is None else torch.as_tensor(num_items, device=counts.device).expand(counts.shape)
    share = mtp_loss_coef / max(len(counts) - 1, 1)
    weights = torch.full(counts.shape, share, dtype=torch.float64, device=counts.device)
    weights[0] = 1.0
    return weights / divisor.clamp_min(1)


def combine_depth_losses(
    losses: DepthLosses, mtp_loss_coef: float, num_items: int | Int[Tensor, ""] | Int[Tensor, " depth"] | None = None
) -> Float[Tensor, ""]:
    """Depth 1's loss plus ``mtp_loss_coef`` times the mean of the other depths'.

    ``num_items`` is what each depth's sum is divided by: the targets of the *whole* accumulated batch, one number for
    all depths (Trainer's ``num_items_in_batch``) or one per depth. Without it each depth is divided by its own count.
    A depth without targets contributes zero.
    """
    weights = combination_weights(losses.counts, mtp_loss_coef, num_items)
    return (weights.to(losses.sums) * losses.sums).sum()


def _masked_sum(logits: Tensor, labels: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(precise, labels, reduction="sum")


def _check_num_depths(num_given: int, targets: Tensor) -> None:
    if num_given != targets.shape[-1]:
        raise ValueError(f"{num_given} depths were given for targets of {targets.shape[-1]} depths; they must agree.")
