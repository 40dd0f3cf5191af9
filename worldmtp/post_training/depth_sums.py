"""Cross-entropy and top-1 hits of depths 2 .. K, summed over a micro-batch.

Sums and counts, not means: only the trainer knows how many targets the accumulated batch has. Depth 1 is TRL's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.targets import DepthTargets, depth_targets, document_ids_from_position_ids


@dataclass(frozen=True)
class DepthSums:
    """Over the valid targets of each later depth; index 0 is depth 2, and K = 1 has none."""

    losses: Float[Tensor, " later_depth"]
    top1_hits: Int[Tensor, " later_depth"]
    counts: Int[Tensor, " later_depth"]


def targets_from_labels(
    labels: Int[Tensor, "batch time"],
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch time"] | None,
    position_ids: Int[Tensor, "_ time"] | None,
    num_depths: int,
) -> DepthTargets:
    """Targets of depths 1 .. ``num_depths``; one counts iff its own label is not -100.

    ``labels`` are Hugging Face's, not shifted. Documents of a packed row are told by positions that restart.
    """
    counted = labels != IGNORE_INDEX
    real = torch.ones_like(counted) if attention_mask is None else attention_mask.bool()
    document_ids = None
    if position_ids is not None:
        document_ids = document_ids_from_position_ids(position_ids.expand(input_ids.shape))
    return depth_targets(
        torch.where(counted, labels, input_ids), real, num_depths, loss_mask=counted, document_ids=document_ids
    )


def sum_depths(
    model: MTPModel, latents: Sequence[Float[Tensor, "batch time hidden"]], targets: DepthTargets
) -> DepthSums:
    """Sums of depths 2 .. K from the latents of depths 1 .. K; only valid positions are unembedded.

    Logits are computed again in the backward pass, so that one depth's at a time are in memory.
    """

    def summed(latent: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits_of(latent, detach_lm_head=model.config.detach_lm_head)
        precise = logits if logits.dtype == torch.float64 else logits.float()
        hits = (logits.argmax(dim=-1) == labels).sum()
        return functional.cross_entropy(precise, labels, reduction="sum"), hits

    losses, hits = [], []
    for index in range(1, len(latents)):
        valid = targets.mask[:, :, index]
        labels = targets.targets[:, :, index][valid]
        loss, hit = checkpoint(summed, latents[index][valid], labels, use_reentrant=False, preserve_rng_state=False)
        losses.append(loss)
        hits.append(hit)
    counts = targets.mask[:, :, 1:].sum(dim=(0, 1))
    if not losses:
        return DepthSums(losses=latents[0].new_zeros(0), top1_hits=counts, counts=counts)
    return DepthSums(losses=torch.stack(losses), top1_hits=torch.stack(hits), counts=counts)
