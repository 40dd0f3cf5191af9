"""What of the multi-token loss changes over training: its coefficient, the depths trained, how often it is computed.

Three frozen configs, each a pure function of ``Progress``, without torch and without state: a resumed run asks the
same question and gets the same answer. ``worldmtp.step_plan`` puts them together for one optimiser step.

Left out: coefficients chosen from measurements during training (OCC, arXiv 2605.28184), which need gradients.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from worldmtp.choices import check_choice

COEF_KINDS = ("constant", "linear", "cosine", "step")
UNITS = ("tokens", "steps", "fraction")
CURRICULA = ("none", "forward", "reverse")


@dataclass(frozen=True)
class Progress:
    """How far training has come before a step.

    Attributes:
        step: optimiser steps done; 0 at the first.
        max_steps: how many there will be, or None where that is not known.
        tokens: tokens trained on so far.
    """

    step: int
    max_steps: int | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.step < 0 or self.tokens < 0:
            raise ValueError(f"step={self.step} and tokens={self.tokens} count what was done; neither is negative.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1; pass None where it is not known.")


@dataclass(frozen=True)
class CoefSchedule:
    """Lambda, the coefficient of all depths 2 .. K beside depth 1's loss, over training.

    ``step`` is ``start`` before ``begin`` and ``end`` from there on: DeepSeek-V3 has 0.3 for the first 10T tokens,
    then 0.1 (arXiv 2412.19437, sec. 4.2). ``linear`` and ``cosine`` go from ``start`` to ``end`` between ``begin`` and
    ``begin + duration`` and stay there.

    Attributes:
        kind: the shape.
        start: value at the beginning; DeepSeek-V3's for most of its training.
        end: value at the end; None for a constant.
        begin: where the change begins, in ``unit``.
        duration: how long it takes, in ``unit``.
        unit: tokens trained on, optimiser steps done, or steps as a fraction of all.
    """

    kind: str = "constant"
    start: float = 0.3
    end: float | None = None
    begin: float = 0.0
    duration: float = 0.0
    unit: str = "fraction"

    def __post_init__(self) -> None:
        check_choice("coef.kind", self.kind, COEF_KINDS)
        check_choice("coef.unit", self.unit, UNITS)
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"coef.{name}={value} must be finite and not negative; 0 turns the loss off.")
        if not 0 <= self.begin < math.inf or not 0 <= self.duration < math.inf:
            raise ValueError(
                f"coef.begin={self.begin} and coef.duration={self.duration} must be finite and not negative."
            )
        if self.kind == "constant" and (self.end is not None or self.begin != 0 or self.duration != 0):
            raise ValueError("a constant coef has a start alone; choose another kind, or drop end, begin and duration.")
        if self.kind != "constant" and self.end is None:
            raise ValueError(f"coef.kind={self.kind!r} goes from start to end; give coef.end.")
        if self.kind == "step" and self.duration != 0:
            raise ValueError(f"coef.duration={self.duration}: a step changes at once, at coef.begin; drop it.")
        if self.kind in ("linear", "cosine") and self.duration == 0:
            raise ValueError(f"coef.kind={self.kind!r} needs a positive coef.duration, in {self.unit}.")
        if self.unit == "fraction" and self.begin + self.duration > 1 + 1e-9:  # 0.7 + 0.3 may round above one
            raise ValueError(
                f"coef.begin={self.begin} plus coef.duration={self.duration} lies beyond the end of training; as "
                "fractions they sum to at most 1. For absolute numbers set coef.unit to 'steps' or 'tokens'."
            )

    def value(self, progress: Progress) -> float:
        """Lambda at that point of training.

        Raises:
            ValueError: the unit is a fraction of training and ``max_steps`` is not known.
        """
        if self.kind == "constant" or self.end is None:
            return self.start
        position = self._position(progress)
        if self.kind == "step":
            return self.start if position < self.begin else self.end
        passed = min(max((position - self.begin) / self.duration, 0.0), 1.0)
        # Both are weighted means of the ends, so that each end is met exactly.
        share = passed if self.kind == "linear" else (1 - math.cos(math.pi * passed)) / 2
        return self.start * (1 - share) + self.end * share

    def _position(self, progress: Progress) -> float:
        if self.unit == "tokens":
            return float(progress.tokens)
        if self.unit == "steps":
            return float(progress.step)
        return progress.step / _known_max_steps(progress, "coef.unit='fraction'")


@dataclass(frozen=True)
class DepthWindow:
    """Which of the depths 2 .. K are trained, and how they come in.

    A curriculum over M depths has M + 1 equal stages (Aynetdinov & Akbik 2025, arXiv 2505.22757; with all depths
    M + 1 = K, the paper's number of heads). ``forward`` starts with the next token alone and adds one depth a stage,
    the shallowest first; ``reverse`` starts with all, loses one depth a stage, the deepest first, and ends with the
    next token alone. The paper's finding: forward keeps what speculative decoding gains, reverse gives the best
    next-token model and heads of no use.

    Attributes:
        first: the shallowest depth trained.
        last: the deepest; None is the model's K.
        curriculum: how the depths come in.
        curriculum_begin: fraction of training at which its first stage begins.
        curriculum_end: fraction at which its last stage ends; that stage's depths stay.
    """

    first: int = 2
    last: int | None = None
    curriculum: str = "none"
    curriculum_begin: float = 0.0
    curriculum_end: float = 1.0

    def __post_init__(self) -> None:
        check_choice("window.curriculum", self.curriculum, CURRICULA)
        if self.first < 2:
            raise ValueError(f"window.first={self.first} must be at least 2; depth 1 is always trained.")
        if self.last is not None and self.last < self.first:
            raise ValueError(f"window.last={self.last} lies before window.first={self.first}; swap them.")
        if not 0 <= self.curriculum_begin < self.curriculum_end <= 1:
            raise ValueError(
                f"window.curriculum_begin={self.curriculum_begin} and curriculum_end={self.curriculum_end} must be "
                "fractions of training with 0 <= begin < end <= 1."
            )


@dataclass(frozen=True)
class Frequency:
    """How often, where and for how many depths the multi-token term is computed: what it costs.

    Attributes:
        every_steps: the term exists in steps divisible by this. Not made up for: the others lack it.
        position_fraction: each position is kept with this probability; what is kept counts 1/fraction.
        position_stride: every n-th position of a row is kept, from a random one on; what is kept counts n-fold.
        answers_only: depths are trained at positions whose next token counts too: from a prompt's last token on, where
            drafting begins. Otherwise the tokens before it are trained to see the answer ahead as well.
        one_random_depth: one depth a step, drawn evenly (Stern et al. 2018, Blockwise Parallel Decoding, arXiv
            1811.03115), its weight multiplied by the number of depths it was drawn from.
    """

    every_steps: int = 1
    position_fraction: float = 1.0
    position_stride: int = 1
    answers_only: bool = False
    one_random_depth: bool = False

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.position_stride < 1:
            raise ValueError(
                f"frequency.every_steps={self.every_steps} and position_stride={self.position_stride} must be at "
                "least 1, which leaves nothing out; coef.start=0 turns the loss off."
            )
        if not 0 < self.position_fraction <= 1:
            raise ValueError(f"frequency.position_fraction={self.position_fraction} must lie in (0, 1].")


def window_depths(window: DepthWindow, num_depths: int) -> range:
    """The depths of the window on a model of K = ``num_depths``, all stages of a curriculum together; K = 1 has none.

    Raises:
        ValueError: the window reaches beyond K.
    """
    if num_depths < 1:
        raise ValueError(f"num_depths={num_depths} must be at least 1, the trunk's own depth.")
    last = num_depths if window.last is None else window.last
    if last > num_depths or window.first > max(num_depths, 2):
        raise ValueError(
            f"window {window.first} .. {last} reaches beyond the model's {num_depths} depths; narrow it or train a "
            "model with MTPConfig(depth=...)."
        )
    return range(window.first, last + 1)


def active_depths(window: DepthWindow, num_depths: int, progress: Progress) -> range:
    """The depths trained at that point of training, shallowest first; none in a curriculum's next-token stage.

    Raises:
        ValueError: the window reaches beyond K, or a curriculum runs and ``max_steps`` is not known.
    """
    depths = window_depths(window, num_depths)
    if window.curriculum == "none":
        return depths
    max_steps = _known_max_steps(progress, f"window.curriculum={window.curriculum!r}")
    # Exact arithmetic: in floats, the 29th of 49 stages would begin a step late.
    begin, end = Fraction(str(window.curriculum_begin)), Fraction(str(window.curriculum_end))
    passed = (Fraction(progress.step, max_steps) - begin) / (end - begin)
    stage = min(max(math.floor(passed * (len(depths) + 1)), 0), len(depths))
    return depths[:stage] if window.curriculum == "forward" else depths[: len(depths) - stage]


def _known_max_steps(progress: Progress, what: str) -> int:
    if progress.max_steps is None:
        raise ValueError(
            f"{what} needs to know how long training is and max_steps is None; give the trainer max_steps, or count in "
            "'steps' or 'tokens'."
        )
    return progress.max_steps
