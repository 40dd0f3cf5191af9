"""What one optimiser step does of the multi-token loss: its coefficient, its depths and their weights, its positions.

``plan_step`` is a pure function of the configs, the progress and a seed. A resumed run draws the same depth and the
same positions, and so do all ranks: every one must run the same heads.
"""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from worldmtp.depth_weights import depth_weights
from worldmtp.schedules import CoefSchedule, DepthWindow, Frequency, Progress, active_depths, window_depths


@dataclass(frozen=True)
class StepPlan:
    """The multi-token term of one step.

    Attributes:
        coef: lambda.
        weights: of depths 2 .. K, zero where a depth is not trained; of a depth that was drawn, with what makes the
            draw unbiased. ``position_scale`` is not in them.
        depths: those trained, shallowest first; empty where the step has no multi-token term.
        position_fraction: see ``Frequency``.
        position_stride: see ``Frequency``.
        position_seed: of the draw of positions.
        answers_only: see ``Frequency``.
    """

    coef: float
    weights: tuple[float, ...]
    depths: tuple[int, ...]
    position_fraction: float
    position_stride: int
    position_seed: int
    answers_only: bool = False

    @property
    def is_active(self) -> bool:
        """Whether the step has a multi-token term at all; without one the heads need not run."""
        return self.coef > 0 and bool(self.depths)

    @property
    def position_scale(self) -> float:
        """One over the probability that a position is kept: sums over what is kept are multiplied by it.

        The sum is then unbiased for the sum over all valid positions, so it is divided by *their* number, not by the
        number kept, which varies with the draw.
        """
        return self.position_stride / self.position_fraction


def plan_step(
    *,
    depth_weighting: str,
    coef: CoefSchedule,
    window: DepthWindow,
    frequency: Frequency,
    num_depths: int,
    progress: Progress,
    seed: int,
) -> StepPlan:
    """The plan of the step that follows ``progress``, on a model of K = ``num_depths``.

    A depth's weight is that of its window, whether or not a curriculum trains the other depths yet: under ``mean`` each
    of M depths counts 1/M from its first step on. A window that ends at j on a deeper model gives depths 2 .. j the
    weights they have on a model of K = j.

    Raises:
        ValueError: a name is unknown, the window reaches beyond K, or a schedule needs ``max_steps``.
    """
    in_window = window_depths(window, num_depths)
    weight_of = dict(zip(in_window, depth_weights(depth_weighting, len(in_window), window.first), strict=True))
    depths = tuple(active_depths(window, num_depths, progress))
    generator = random.Random(f"{seed}:{progress.step}")
    position_seed = generator.getrandbits(63)  # drawn first: the same positions whether or not a depth is drawn
    if progress.step % frequency.every_steps != 0:
        depths = ()
    rescale = 1.0
    if frequency.one_random_depth and depths:
        rescale = float(len(depths))
        depths = (generator.choice(depths),)
    return StepPlan(
        coef=coef.value(progress),
        weights=tuple(rescale * weight_of[k] if k in depths else 0.0 for k in range(2, num_depths + 1)),
        depths=depths,
        position_fraction=frequency.position_fraction,
        position_stride=frequency.position_stride,
        position_seed=position_seed,
        answers_only=frequency.answers_only,
    )


def position_mask(plan: StepPlan, mask: Bool[Tensor, "batch time depth"]) -> Bool[Tensor, "batch time depth"]:
    """The mask of depths 2 .. K at the positions the plan keeps, the same for all of them.

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
