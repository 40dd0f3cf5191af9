"""The multi-token loss of one batch: an objective's plan of the step, applied to a model's heads.

One pass of the trunk is given; the heads of the planned depths run on what it left, and the losses of all of them come
out as one sum. Sums, not means: a batch may be accumulated of several, and only the trainer knows how many targets the
whole has. Depth 1 is not in it; it is the trainer's own loss.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from worldmtp.fused_losses import DepthSums, LossTerms, Teacher, summed_depth_losses
from worldmtp.heads.features import TrunkFeatures
from worldmtp.model import MTPModel
from worldmtp.objective import MTPObjective
from worldmtp.step_plan import StepPlan, position_mask


@dataclass(frozen=True)
class MultiTokenLoss:
    """``total`` is differentiable: the weighted sum over depths and valid positions, without lambda.

    ``sums`` are what it is made of, one entry for each of ``depths``, over the positions that were kept.
    """

    total: Float[Tensor, ""]
    depths: tuple[int, ...]
    sums: DepthSums


def multi_token_loss(
    model: MTPModel,
    features: TrunkFeatures,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    objective: MTPObjective,
    plan: StepPlan,
    attention_mask: Shaped[Tensor, "batch time"] | None = None,
    position_ids: Int[Tensor, "_ time"] | None = None,
    teacher_hidden: Float[Tensor, "batch time hidden"] | None = None,
    with_acceptance: bool = False,
) -> MultiTokenLoss:
    """The loss of the planned depths; zero, with nothing run, where the plan is not active.

    ``labels`` are Hugging Face's. ``teacher_hidden`` replaces the trunk's own states as the teacher (a moving average).
    With ``with_acceptance`` the acceptance by the trunk is measured, whatever the objective trains.
    """
    depths = plan.depths if plan.is_active else ()
    if not depths:
        return MultiTokenLoss(features.post_norm.new_zeros(()), (), _no_sums(features.post_norm))
    latents = model.head_latents(features, input_ids, attention_mask, position_ids, depths)
    targets = model.targets(input_ids, attention_mask, position_ids, labels)
    chosen = [depth - 1 for depth in depths]
    mask = targets.mask[..., chosen]
    if plan.answers_only:
        mask = mask & targets.mask[..., :1]
    lm_head = model.get_output_embeddings()
    layers = [model.output_layer(depth) for depth in depths]
    teacher = None
    if objective.needs_teacher or with_acceptance:
        teacher = Teacher(
            hidden=features.post_norm if teacher_hidden is None else teacher_hidden,
            output_layer=lm_head,
            offsets=tuple(model.config.offsets[index] for index in chosen),
            detach=objective.detach_teacher,
        )
    total, sums = summed_depth_losses(
        [latents[depth] for depth in depths],
        layers,
        targets.targets[..., chosen],
        position_mask(plan, mask),
        weights=[plan.weights[depth - 2] * plan.position_scale for depth in depths],
        terms=objective.terms,
        teacher=teacher,
        transform=model.final_logits if model.transforms_logits else None,
        detach_output=[model.config.detach_lm_head and layer is lm_head for layer in layers],
        chunk_size=objective.chunk_size,
        with_acceptance=with_acceptance,
    )
    return MultiTokenLoss(total, depths, sums)


def next_token_loss(
    model: MTPModel,
    features: TrunkFeatures,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch time"] | None = None,
    position_ids: Int[Tensor, "_ time"] | None = None,
    chunk_size: int = 1024,
) -> tuple[Float[Tensor, ""], DepthSums]:
    """Depth 1 alone: the summed cross-entropy of the next token over its valid targets, and what it is made of."""
    targets = model.targets(input_ids, attention_mask, position_ids, labels)
    return summed_depth_losses(
        [features.post_norm],
        [model.output_layer(1)],
        targets.targets[..., :1],
        targets.mask[..., :1],
        weights=[1.0],
        terms=LossTerms(),
        teacher=None,
        transform=model.final_logits if model.transforms_logits else None,
        detach_output=[False],
        chunk_size=chunk_size,
        with_acceptance=False,
    )


def evaluation_plan(num_depths: int) -> StepPlan:
    """All depths at all positions with weight one: what is measured does not follow what a step trains."""
    depths = tuple(range(2, num_depths + 1))
    return StepPlan(
        coef=1.0,
        weights=(1.0,) * len(depths),
        depths=depths,
        position_fraction=1.0,
        position_stride=1,
        position_seed=0,
    )


def _no_sums(like: Tensor) -> DepthSums:
    zeros, counts = like.detach().new_zeros(0), torch.zeros(0, dtype=torch.long, device=like.device)
    return DepthSums(ce=zeros, kl=zeros, tv=zeros, latent=zeros, top1_hits=counts, accepted=zeros, counts=counts)
