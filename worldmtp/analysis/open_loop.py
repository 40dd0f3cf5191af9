"""Why a model errs many tokens ahead: by the states that it rolls along, or by the tokens that it says to itself.

Three ways to foretell token t+k, each by its loss on the token that came:

    full        the whole text up to t+k-1 is read anew (the trunk's own next token)
    rolling     the state of x_<=t is stepped along with the real tokens in between
    open loop   the state of x_<=t is stepped along with tokens that the model draws itself

    open loop / full  =  rolling / full  *  open loop / rolling
        product             exposure             context

The model draws many paths, and its open-loop prediction is the mean over them: what it thinks of t+k with nothing but
x_<=t. A ratio of losses is no ratio of distances: of a right model the exposure is 1, and the context is not 1 but
(noise + structural gap) / noise (``loss_split``), as nobody knows the tokens in between.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.loss_split import Parts
from worldmtp.statistics import Interval, sums_interval

_SPREAD = 1e-3
"""Share of the uniform law in an open-loop prediction: a token of which no drawn path thought costs a finite loss."""


@dataclass(frozen=True)
class OpenLoopLosses:
    """Minus log of what each way gave to the token that came, in nats; NaN where a depth is not known."""

    full: Parts
    rolling: Parts
    open_loop: Parts


@dataclass(frozen=True)
class OpenLoopSplit:
    """The ratios of mean losses at one depth, sequences resampled; ``product`` is open loop over full teacher."""

    exposure: Interval
    context: Interval
    product: Interval


def open_loop_split(
    losses: OpenLoopLosses, depth: int, *, generator: np.random.Generator | int
) -> OpenLoopSplit | None:
    """Return the split at a depth; None where fewer than two sequences say anything, or the full teacher has no loss.

    Numerator and denominator are resampled together, over the places where all three losses are known.
    """
    at_depth = [values[:, :, depth - 1] for values in (losses.full, losses.rolling, losses.open_loop)]
    there = np.isfinite(np.stack(at_depth)).all(axis=0)
    sums = np.stack([np.where(there, values, 0.0).sum(axis=1) for values in at_depth], axis=1)[there.sum(axis=1) > 0]
    # A ratio has no interval where a loss is no more than rounding.
    if len(sums) < 2 or sums[:, :2].sum(axis=0).min() <= 1e-9 * there.sum():
        return None
    generator = np.random.default_rng(generator)

    def ratio(above: int, below: int) -> Interval:
        def of_totals(totals: Float[np.ndarray, "resample 3"]) -> Float[np.ndarray, " resample"]:
            nothing = np.full(len(totals), np.nan)
            return np.divide(totals[:, above], totals[:, below], out=nothing, where=totals[:, below] > 0)

        return sums_interval(sums, of_totals, generator=generator, num_resamples=2000)

    return OpenLoopSplit(exposure=ratio(1, 0), context=ratio(2, 1), product=ratio(2, 0))


def drawn_path_loss(
    conditionals: Float[np.ndarray, "sequence root depth path symbol"],
    tokens: Int[np.ndarray, "sequence root depth"],
    alive: Bool[np.ndarray, "sequence root depth path"] | None = None,
) -> Parts:
    """Return -log of the mean over drawn paths of what the model gave to the token that came.

    ``conditionals[..., k-1, i, :]`` is q(x_{t+k} | x_<=t, the first k-1 tokens of path i). The mean over few paths is
    unbiased and its logarithm is not: it is too low by about the paths' variance over twice their number, so a loss is
    too high by that. A realized token k ahead says that the text went on so long: ``alive`` marks paths that did as
    well, and NaN is returned where none did.
    """
    counts_as = np.ones(conditionals.shape[:-1], dtype=bool) if alive is None else alive
    count = counts_as.sum(axis=-1)
    found = np.take_along_axis(conditionals, tokens[..., None, None], axis=-1)[..., 0]
    mean = np.where(counts_as, found, 0.0).sum(axis=-1) / np.maximum(count, 1)
    mean = (1 - _SPREAD) * mean + _SPREAD / conditionals.shape[-1]
    loss: Parts = np.where(count > 0, -np.log(mean), np.nan)
    return loss
