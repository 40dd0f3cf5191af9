"""The multi-token loss of one batch: an objective's plan of the step, applied to a model's heads. The only door.

One pass of the trunk is given; the heads of the planned depths run on what it left, and the losses of all of them come
out as one sum. Sums, not means: a batch may be accumulated of several, and only the trainer knows how many targets the
whole has. ``training_loss`` puts the next token's loss and the later depths' together, as every trainer here does:

    L = (S_1 + lambda * sum_{k=2..K} w_k S_k) / N,    N: targets of the next token in the whole batch

where S_k sums depth k's terms over its targets. With weights 1 / (K - 1) it is DeepSeek-V3's loss (arXiv 2412.19437,
eq. 24-25, D = K - 1), but for what the last positions of a text, which have no target k tokens ahead, would count for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from worldmtp.model.trunk import LogitChanges, TrunkFeatures
from worldmtp.objective.fused import DepthSums, Teacher, summed_depth_losses
from worldmtp.objective.objective import LossTerms, MTPObjective
from worldmtp.objective.plan import StepPlan
from worldmtp.objective.sweep import Transform
from worldmtp.objective.targets import DepthTargets
from worldmtp.objective.token_losses import precise_dtype


@runtime_checkable
class MultiTokenModel(Protocol):
    """What the loss needs of ``worldmtp.MTPModel``, which itself calls the loss where it is given labels."""

    config: Any
    logit_changes: LogitChanges

    def head_latents(
        self,
        features: TrunkFeatures,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        depths: Iterable[int],
    ) -> dict[int, Tensor]:
        """Return the teacher-forced latents of those depths."""
        ...

    def targets(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, labels: Tensor
    ) -> DepthTargets:
        """Return what each depth is to predict."""
        ...

    def output_layer(self, depth: int) -> nn.Linear:
        """Return what makes logits of a depth's latents."""
        ...

    def get_output_embeddings(self) -> nn.Linear:
        """Return the trunk's LM head."""
        ...


@dataclass(frozen=True)
class MultiTokenLoss:
    """``total`` is differentiable: the weighted sum over depths and valid positions, without lambda.

    ``sums`` are what it is made of, one entry for each of ``depths``, over the positions that were kept.
    """

    total: Float[Tensor, ""]
    depths: tuple[int, ...]
    sums: DepthSums


def multi_token_loss(
    model: MultiTokenModel,
    features: TrunkFeatures,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    objective: MTPObjective,
    plan: StepPlan,
    attention_mask: Shaped[Tensor, "batch time"] | None = None,
    position_ids: Int[Tensor, "_ time"] | None = None,
    teacher_hidden: Float[Tensor, "batch time hidden"] | None = None,
    with_acceptance: bool = False,
    latents: Mapping[int, Float[Tensor, "batch time hidden"]] | None = None,
    transform: Transform | None = None,
    per_target: bool = False,
) -> MultiTokenLoss:
    """Return the loss of the planned depths; zero, with nothing run, where the plan is not active.

    ``labels`` are Hugging Face's. ``latents`` saves the heads' forward where those of the planned depths are at hand.
    ``teacher_hidden`` replaces the trunk's own states as the teacher (a moving average).
    With ``with_acceptance`` the acceptance by the trunk is measured, whatever the objective trains.
    ``transform`` makes logits of an output layer's product, by default as the trunk does; a policy that acts at a
    temperature has another. With ``per_target`` the total has each depth's mean over its targets in place of its sum.
    """
    depths = plan.depths if plan.is_active else ()
    if not depths:
        return MultiTokenLoss(features.post_norm.new_zeros(()), (), _no_sums(features.post_norm))
    if latents is None:
        latents = model.head_latents(features, input_ids, attention_mask, position_ids, depths)
    targets = model.targets(input_ids, attention_mask, position_ids, labels)
    chosen = [depth - 1 for depth in depths]
    mask = targets.mask[..., chosen]
    if plan.answers_only:
        mask = mask & targets.mask[..., :1]
    mask = position_mask(plan, mask)
    weights: list[float | Tensor] = [plan.weights[depth - 2] * plan.position_scale for depth in depths]
    if per_target:
        counts = mask.sum(dim=(0, 1)).clamp(min=1).to(precise_dtype(features.post_norm.dtype))
        weights = [weight / count for weight, count in zip(weights, counts, strict=True)]
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
        mask,
        weights=weights,
        terms=objective.terms,
        teacher=teacher,
        transform=transform or model.logit_changes or None,
        detach_output=[model.config.detach_lm_head and layer is lm_head for layer in layers],
        chunk_size=objective.chunk_size,
        with_acceptance=with_acceptance,
    )
    return MultiTokenLoss(total, depths, sums)


def next_token_loss(
    model: MultiTokenModel,
    features: TrunkFeatures,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch time"] | None = None,
    position_ids: Int[Tensor, "_ time"] | None = None,
    chunk_size: int = 1024,
) -> tuple[Float[Tensor, ""], DepthSums]:
    """Return depth 1's summed cross-entropy over its valid targets, and what it is made of."""
    targets = model.targets(input_ids, attention_mask, position_ids, labels)
    return summed_depth_losses(
        [features.post_norm],
        [model.output_layer(1)],
        targets.targets[..., :1],
        targets.mask[..., :1],
        weights=[1.0],
        terms=LossTerms(),
        teacher=None,
        transform=model.logit_changes or None,
        detach_output=[False],
        chunk_size=chunk_size,
        with_acceptance=False,
    )


def training_loss(
    model: MultiTokenModel,
    features: TrunkFeatures,
    input_ids: Int[Tensor, "batch time"],
    labels: Int[Tensor, "batch time"],
    objective: MTPObjective,
    plan: StepPlan,
    attention_mask: Shaped[Tensor, "batch time"] | None = None,
    position_ids: Int[Tensor, "_ time"] | None = None,
    num_items: int | Shaped[Tensor, "..."] | None = None,
    latents: Mapping[int, Float[Tensor, "batch time hidden"]] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " depth"]]:
    """Return the loss L of all depths, and each depth's mean cross-entropy per target (NaN: not in the plan).

    ``num_items`` is N, the next token's targets in the whole accumulated batch, by default in this one.
    """
    first, first_sums = next_token_loss(
        model, features, input_ids, labels, attention_mask, position_ids, objective.chunk_size
    )
    later = multi_token_loss(
        model, features, input_ids, labels, objective, plan, attention_mask, position_ids, latents=latents
    )
    count = first_sums.counts[0] if num_items is None else torch.as_tensor(num_items, device=first.device)
    means = first.new_full((model.config.depth,), float("nan"))
    means[0] = first_sums.ce[0] / first_sums.counts[0].clamp_min(1)
    if later.depths:
        means[[depth - 1 for depth in later.depths]] = (later.sums.ce / later.sums.counts.clamp_min(1)).to(means)
    return (first + plan.coef * later.total) / count.clamp_min(1), means.detach()


def evaluation_plan(num_depths: int) -> StepPlan:
    """Return a plan of all depths at all positions: what is measured does not follow what a step trains."""
    depths = tuple(range(2, num_depths + 1))
    return StepPlan(
        coef=1.0, weights=(1.0,) * len(depths), depths=depths, position_fraction=1.0, position_stride=1, position_seed=0
    )


def _no_sums(like: Tensor) -> DepthSums:
    zeros, counts = like.detach().new_zeros(0), torch.zeros(0, dtype=torch.long, device=like.device)
    return DepthSums(ce=zeros, kl=zeros, tv=zeros, latent=zeros, top1_hits=counts, accepted=zeros, counts=counts)


def position_mask(plan: StepPlan, mask: Bool[Tensor, "batch time depth"]) -> Bool[Tensor, "batch time depth"]:
    """Return the mask of depths 2 .. K at the positions the plan keeps, the same for all of them.

    A row keeps every ``position_stride``-th position from a random one on, and of these each with probability
    ``position_fraction``; multiply sums over it by ``plan.position_scale``. Depth 1 is never thinned: do not pass it.
    Micro-batches of one step and of one shape keep the same positions.
    """
    if plan.position_fraction == 1 and plan.position_stride == 1:
        return mask
    num_rows, length, _ = mask.shape
    generator = torch.Generator(device=mask.device).manual_seed(plan.position_seed)
    phase = torch.randint(plan.position_stride, (num_rows, 1), generator=generator, device=mask.device)
    on_stride = torch.arange(length, device=mask.device) % plan.position_stride == phase  # (B, T)
    chances = torch.rand((num_rows, length), generator=generator, device=mask.device)
    kept = on_stride & (chances < plan.position_fraction)
    return mask & kept[:, :, None]
