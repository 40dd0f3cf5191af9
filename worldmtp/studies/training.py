"""A plain training loop for studies: next tokens and an objective's later depths, AdamW, one seed, nothing hidden.

Comparing head designs takes many short runs on equal terms; TRL's trainers bring data handling, logging and checkpoints
that such runs do not need, at several times their time a step. The loss and the two clip groups are the same as there.
Left out: mixed precision, several devices, gradient accumulation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import multi_token_loss, next_token_loss
from worldmtp.objective.plan import Progress, StepPlan


@dataclass(frozen=True)
class Batch:
    """Texts without padding inside; ``labels`` are -100 where a token is not a target."""

    input_ids: Int[Tensor, "batch time"]
    labels: Int[Tensor, "batch time"]


@dataclass(frozen=True)
class TrainingConfig:
    """Steps and optimiser. ``trains_trunk=False`` trains heads on a frozen trunk, whose forward keeps no graph."""

    num_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_lr_fraction: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    trains_trunk: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive.")


@dataclass(frozen=True)
class StepLosses:
    """Means per target of one step: the next token's loss, and those of the depths that ran.

    ``num_targets`` counts them by depth, the next token's under 1.
    """

    step: int
    next_token: float
    later: dict[int, float]
    num_targets: dict[int, int]


def train(
    model: MTPModel,
    batch_of: Callable[[int], Batch],
    objective: MTPObjective,
    config: TrainingConfig,
    on_step: Callable[[StepLosses], None] | None = None,
) -> None:
    """Train ``model`` in place for ``num_steps`` batches; step n sees ``batch_of(n)``.

    Raises:
        ValueError: the objective needs a moving average of the trunk.
        FloatingPointError: a loss is not finite; the weights are those before that step.
    """
    if objective.needs_ema:
        raise ValueError("this loop keeps no moving average of the trunk; use latent_target='trunk'.")
    trunk, heads = list(model.trunk.parameters()), list(model.heads.parameters())
    model.train()
    groups = [group for group in (trunk if config.trains_trunk else [], heads) if group]
    optimizer = torch.optim.AdamW(
        [parameter for group in groups for parameter in group],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    num_tokens = 0
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step)
        batch = batch_of(step)
        plan = objective.plan(model.config.depth, Progress(step, config.num_steps, num_tokens), config.seed)
        losses = _backward(model, batch, objective, plan, config)
        for parameters in groups:
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        num_tokens += batch.input_ids.numel()
        if on_step is not None:
            on_step(StepLosses(step, *losses))
    model.eval()


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Return a linear warm-up, then a cosine down to the final fraction, reached as the last step ends."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(config.num_steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def _backward(
    model: MTPModel, batch: Batch, objective: MTPObjective, plan: StepPlan, config: TrainingConfig
) -> tuple[float, dict[int, float], dict[int, int]]:
    """Compute the gradients of one batch's loss; return the means it is made of, and their numbers of targets."""
    with torch.set_grad_enabled(config.trains_trunk):
        features: TrunkFeatures = model.trunk_features(batch.input_ids)
        first, first_sums = next_token_loss(model, features, batch.input_ids, batch.labels)
    later = multi_token_loss(model, features, batch.input_ids, batch.labels, objective, plan)
    num_targets = int((batch.labels[:, 1:] != IGNORE_INDEX).sum())
    loss = (first + plan.coef * later.total) / max(num_targets, 1)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {float(loss.detach())}; lower the learning rate.")
    if loss.requires_grad:
        loss.backward()
    counts = dict(zip(later.depths, later.sums.counts.tolist(), strict=True))
    means = {depth: float(ce) / max(counts[depth], 1) for depth, ce in zip(later.depths, later.sums.ce, strict=True)}
    return float(first_sums.ce[0]) / max(num_targets, 1), means, {1: num_targets} | counts
