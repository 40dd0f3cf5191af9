"""What a head's loss at depth k is made of: what nobody can know, what no head that averages can know, its own error.

With root t, prefix c = x_<=t, true law p, marginal m_k = p(x_{t+k} | c) and head q_k, in nats and exactly:

    E[-log q_k(x_{t+k})]  =  H(x_{t+k} | x_<t+k)  +  I(x_{t+k}; x_{t+1:t+k-1} | c)  +  KL(m_k || q_k)
         loss             =        noise          +           structural           +     error

"A deep head is worse than the next token" mixes the last two; only the error falls with training. Where the law is
known all three are closed forms (``exact_split``). Where only the trunk is there, m_k is not: it is a mean of the
trunk's predictions p_i over the tokens in between, and a mean of M samples errs to one side each way:

    lower:  H(mean p)                              falls short of H(m_k): entropy is concave
    upper:  -mean_i sum_v p_i log mean_{j != i} p_j   exceeds it: a cross-entropy is least at its own law

so ``bracketed_split`` gives both, and error and structural gap as brackets. The plug-in KL(mean p || q_k) is not
offered: at M = 4 it was .10 where the truth was .002.

A head's loss may be below the noise floor only by chance, or because it has seen what it speaks of: an ``error`` whose
interval is below zero is a leak.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.statistics import Interval, ratio_interval

Probabilities = Float[np.ndarray, "sequence root depth symbol"]
Parts = Float[np.ndarray, "sequence root depth"]

_SPREAD = 1e-3


@dataclass(frozen=True)
class LossSplit:
    """The parts of each (root, depth); where only samples are there, ``upper`` bounds and ``lower`` bounds differ.

    ``loss = noise + structural + error`` holds for each pairing: a lower structural gap leaves an upper error. NaN
    marks pairs that are not there, as where a text ends, in all parts alike.
    """

    loss: Parts
    noise: Parts
    structural_lower: Parts
    structural_upper: Parts

    @property
    def error_lower(self) -> Parts:
        """Return what is left of the loss after the most that m_k can account for."""
        return self.loss - self.noise - self.structural_upper

    @property
    def error_upper(self) -> Parts:
        """Return what is left of the loss after the least that m_k can account for."""
        return self.loss - self.noise - self.structural_lower

    def num_sequences(self, depth: int) -> int:
        """Return how many sequences say anything of a depth."""
        return int(np.isfinite(self.structural_upper[:, :, depth - 1]).any(axis=1).sum())

    def interval(self, part: str, depth: int, *, generator: np.random.Generator | int, level: float = 0.9) -> Interval:
        """Return the interval of ``loss``, ``noise``, ``structural`` or ``error`` at a depth, sequences resampled.

        Of a bracket it runs from the low end of the lower bound's interval to the high end of the upper bound's, and
        its estimate is the middle; so it covers at least as often as it says.

        Raises:
            ValueError: fewer than two sequences say anything of that depth.
        """
        if part in ("loss", "noise"):
            return _interval(getattr(self, part), depth, generator, level)
        lower = _interval(getattr(self, f"{part}_lower"), depth, generator, level)
        upper = _interval(getattr(self, f"{part}_upper"), depth, generator, level)
        return Interval(
            estimate=(lower.estimate + upper.estimate) / 2,
            low=lower.low,
            high=upper.high,
            level=level,
            unit=lower.unit,
            method=lower.method if self.is_exact else f"{lower.method} of both bounds",
            n=lower.n,
        )

    @property
    def is_exact(self) -> bool:
        """Return whether the bounds meet."""
        return self.structural_lower is self.structural_upper


def exact_split(loss: Parts, noise: Parts, structural: Parts) -> LossSplit:
    """Return the split where the law is known: ``Source.true_split`` of the roots' beliefs, and the head's losses.

    ``loss`` is -log q_k of realized tokens, or its mean over the law (``expected_loss``), which has less variance.
    """
    return LossSplit(loss, noise, structural, structural)


def bracketed_split(
    loss: Parts,
    chain_loss: Parts,
    conditionals: Float[np.ndarray, "sequence root depth future symbol"],
    alive: Bool[np.ndarray, "sequence root depth future"] | None = None,
) -> LossSplit:
    """Return the split where futures can only be drawn; ``conditionals[..., k-1, i, :]`` is p(x_{t+k} | c, future i).

    ``future i`` are tokens t+1 .. t+k-1 drawn from the trunk, independent of the realized ones. ``chain_loss`` is the
    trunk's -log p(x_{t+k} | x_<t+k) of the realized tokens, or the entropy there: its mean is the noise. In the upper
    bound each left-out mean holds a thousandth of the uniform law, so that a token no other future gave any probability
    costs its logarithm and not infinity; any law may stand there, the bound holds.

    A realized token k ahead says that the text went on so long, and heads learn from such alone: ``alive`` marks
    futures that did as well, and the law is that given so. A pair is left out where fewer than two are, or the loss is
    NaN.

    Raises:
        ValueError: fewer than two futures.
    """
    num_futures, num_symbols = conditionals.shape[-2:]
    if num_futures < 2:
        raise ValueError(f"{num_futures} future(s) a root; the upper bound leaves one out, so draw at least 2.")
    counts_as = np.ones(conditionals.shape[:-1], dtype=bool) if alive is None else alive
    count = counts_as.sum(axis=-1)
    there = (count >= 2) & np.isfinite(loss) & np.isfinite(chain_loss)
    weights = counts_as / np.maximum(count, 1)[..., None]
    mean = (conditionals * weights[..., None]).sum(axis=-2)
    left = np.maximum(count - 1, 1)[..., None, None]
    others = (mean[..., None, :] * count[..., None, None] - conditionals) / left
    others = (1 - _SPREAD) * np.maximum(others, 0) + _SPREAD / num_symbols
    lower = _entropy(mean)
    upper = -(weights * (conditionals * np.log(others)).sum(axis=-1)).sum(axis=-1)
    # The futures' own entropies estimate the same noise and share the luck of the draw, so their difference is quiet.
    drawn_noise = (weights * _entropy(conditionals)).sum(axis=-1)
    parts = (loss, chain_loss, lower - drawn_noise, upper - drawn_noise)
    return LossSplit(*(np.where(there, part, np.nan) for part in parts))


def expected_loss(marginals: Probabilities, predicted: Probabilities) -> Parts:
    """Return -sum_v m_k(v) log q_k(v): the loss with the luck of the realized token averaged out."""
    with np.errstate(divide="ignore"):
        logs = np.log(predicted)
    return -np.where(marginals > 0, marginals * logs, 0.0).sum(axis=-1)


def of_realized(
    predicted: Probabilities, tokens: Int[np.ndarray, "sequence time"], first_root: int = 0, first_depth: int = 1
) -> Parts:
    """Return the probability that each depth gave to what came.

    ``predicted[b, r, j]`` speaks of the token ``first_depth + j`` behind token ``first_root + r``.

    Raises:
        ValueError: a root's window leaves the text.
    """
    num_roots, num_depths = predicted.shape[1:3]
    needed = first_root + num_roots + first_depth + num_depths - 1
    if needed > tokens.shape[1]:
        raise ValueError(
            f"{num_roots} roots from token {first_root} on, and {num_depths} tokens from {first_depth} ahead, need "
            f"{needed} tokens; the texts have {tokens.shape[1]}."
        )
    ahead = np.arange(first_depth, first_depth + num_depths)
    targets = tokens[:, first_root + np.arange(num_roots)[:, None] + ahead]
    found: Parts = np.take_along_axis(predicted, targets[..., None], axis=-1)[..., 0]
    return found


def realized_loss(
    predicted: Probabilities, tokens: Int[np.ndarray, "sequence time"], first_root: int = 0, first_depth: int = 1
) -> Parts:
    """Return -log of what ``of_realized`` returns.

    Raises:
        ValueError: as ``of_realized``.
    """
    return -np.log(of_realized(predicted, tokens, first_root, first_depth))


def _interval(values: Parts, depth: int, generator: np.random.Generator | int, level: float) -> Interval:
    chosen = values[:, :, depth - 1]
    there = np.isfinite(chosen)
    totals, counts = np.where(there, chosen, 0.0).sum(axis=1), there.sum(axis=1)
    return ratio_interval(totals, counts, generator=generator, level=level, num_resamples=2000)


def _entropy(probabilities: Float[np.ndarray, "*batch symbol"]) -> Float[np.ndarray, "*batch"]:
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return -(probabilities * logs).sum(axis=-1)
