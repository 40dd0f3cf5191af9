"""Multi-token losses: cross-entropy per depth as a sum and a count, and how depths combine.

Sums and counts, not means: gradient accumulation is exact only when every micro-batch divides by the whole batch's
number of targets (``num_items``).

    L = L_1 + coef * 1/(K-1) * sum_{k=2..K} L_k            (DeepSeek-V3, arXiv 2412.19437, eq. 24-25, with D = K - 1)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from worldmtp.targets import DepthTargets


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


def depth_losses_from_latents(
    latents: Sequence[Float[Tensor, "batch time hidden"]],
    targets: DepthTargets,
    lm_head_weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    detach_lm_head: bool = False,
) -> DepthLosses:
    """As ``depth_cross_entropy`` of ``latents @ lm_head_weight.T + bias``, without ever holding two depths' logits.

    Only valid positions are unembedded; the logits of a depth are freed after its sum and computed again in the
    backward pass. ``transform`` is applied to the logits (soft caps, scales). ``detach_lm_head`` spares the LM head
    the gradients of depths 2 .. K, never those of depth 1.

    Raises:
        ValueError: as many latents as depths are needed.
    """
    _check_num_depths(len(latents), targets.targets)

    def summed(latent: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        logits = functional.linear(latent, weight, bias)
        return _masked_sum(logits if transform is None else transform(logits), labels)

    sums = []
    for k, latent in enumerate(latents):
        valid = targets.mask[:, :, k]
        weight, offset = lm_head_weight, bias
        if detach_lm_head and k > 0:
            weight, offset = weight.detach(), None if offset is None else offset.detach()
        arguments = (latent[valid], weight, offset, targets.targets[:, :, k][valid])
        sums.append(checkpoint(summed, *arguments, use_reentrant=False, preserve_rng_state=False))
    return DepthLosses(sums=torch.stack(sums), counts=targets.mask.sum(dim=(0, 1)))


def combine_depth_losses(
    losses: DepthLosses, mtp_loss_coef: float, num_items: int | Int[Tensor, ""] | Int[Tensor, " depth"] | None = None
) -> Float[Tensor, ""]:
    """Depth 1's loss plus ``mtp_loss_coef`` times the mean of the other depths'.

    ``num_items`` is what each depth's sum is divided by: the targets of the *whole* accumulated batch, one number for
    all depths (Trainer's ``num_items_in_batch``) or one per depth. Without it each depth is divided by its own count.
    A depth without targets contributes zero.
    """
    divisor = losses.counts if num_items is None else torch.as_tensor(num_items, device=losses.sums.device)
    means = losses.sums / divisor.clamp_min(1)
    if len(means) == 1:
        return means[0]
    return means[0] + mtp_loss_coef * means[1:].mean()


def _masked_sum(logits: Tensor, labels: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(precise, labels, reduction="sum")


def _check_num_depths(num_given: int, targets: Tensor) -> None:
    if num_given != targets.shape[-1]:
        raise ValueError(f"{num_given} depths were given for targets of {targets.shape[-1]} depths; they must agree.")
