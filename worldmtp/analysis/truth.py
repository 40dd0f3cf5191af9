"""What heads say beside what is true, of texts of a source whose law is known.

An evaluation in an exact world (``worldmtp.exact.GoalTexts``) also reads its held-out demonstrations: texts of the
source itself, whatever the policy writes by now. Of each root (the end of the prefix and each token of the answer but
the last) and each depth that ends within the text it keeps

    loss          -sum_v p(v) log q_k(v), p the true law of the token given all before it: no luck of the token drawn
    noise         H(x_{t+k} | x_<t+k, goal)                  closed form, in the mean over the tokens in between
    structural    I(x_{t+k}; x_{t+1:t+k-1} | x_<=t, goal)    closed form
    accept        sum_v min(p(v), q_k(v)): a draft of the head that the law itself would keep
    accept_exact  the same of the perfect head of its kind: m_k, or p of one that is told the tokens in between

``noise + structural`` is the least that heads which average can lose, ``noise`` of those that are told (``told``).
The luck of the tokens in between that were drawn is taken out of ``loss``: what the perfect head loses with them, less
its mean, which is the floor. So a perfect head has no error at any root. A token that the law may say and a head gives
nothing counts as one of probability 2e-308, 708 nats: seen in every mean, where infinity would have to be left out.

    <run>/truth/<evaluation>.npz
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from worldmtp.analysis.artefacts import ArtefactError, opened_arrays, write_arrays
from worldmtp.analysis.loss_split import LossSplit, exact_split
from worldmtp.statistics import Interval, ratio_interval

TRUTH_DIRECTORY = "truth"
FORMAT_VERSION = 1
Parts = Float[np.ndarray, "sequence root depth"]


@dataclass(frozen=True)
class Truth:
    """One evaluation; NaN where a depth reaches beyond the text.

    ``belief_errors`` are summed squared distances, over the roots of a sequence, from the exact belief to what a ridge
    regression fitted on other sequences reads: off the trunk's states, and off the last token alone.
    ``belief_spread`` are those to the mean belief. Nothing of the sequences that it was fitted on.
    """

    loss: Parts
    noise: Parts
    structural: Parts
    accept: Parts
    accept_exact: Parts
    belief_errors: Float[np.ndarray, "test reader"]
    belief_spread: Float[np.ndarray, " test"]
    told: Bool[np.ndarray, ""]

    @property
    def num_depths(self) -> int:
        """Return K."""
        return int(self.loss.shape[2])

    @property
    def split(self) -> LossSplit:
        """Return the exact split of each depth's loss."""
        return exact_split(self.loss, self.noise, self.structural)

    @property
    def floor(self) -> Parts:
        """Return what a perfect head of this kind loses; depth 1 is told everything in any case."""
        return self.noise if self.told else self.noise + self.structural

    def interval(self, what: str, depth: int) -> Interval:
        """Return a 90 % interval over sequences of a field, of ``floor``, or of ``error``: the loss less the floor.

        Raises:
            ValueError: fewer than two sequences.
        """
        values = self.loss - self.floor if what == "error" else getattr(self, what)
        there = np.isfinite(self.noise[:, :, depth - 1])
        totals = np.where(there, values[:, :, depth - 1], 0.0).sum(axis=1)
        return ratio_interval(totals, there.sum(axis=1), generator=0, num_resamples=2000)

    def belief_r2(self, reader: int) -> Interval | None:
        """Return the explained share of the beliefs, by the trunk's states (0) or the last token (1).

        None where all beliefs are alike.
        """
        if len(self.belief_spread) < 2 or not self.belief_spread.sum() > 0:
            return None
        missed = ratio_interval(self.belief_errors[:, reader], self.belief_spread, generator=0, num_resamples=2000)
        return Interval(
            1 - missed.estimate, 1 - missed.high, 1 - missed.low, missed.level, missed.unit, missed.method, missed.n
        )

    def scalars(self) -> dict[str, float]:
        """Return the means by the tags they are logged under."""
        found = {}
        for depth in range(1, self.num_depths + 1):
            for name in ("loss", "noise", "structural", "accept", "accept_exact"):
                found[f"truth/depth_{depth}/{name}"] = float(np.nanmean(getattr(self, name)[:, :, depth - 1]))
            error = self.interval("error", depth)
            tags = (f"truth/depth_{depth}/error{end}" for end in ("", "_lo90", "_hi90"))
            found |= dict(zip(tags, (error.estimate, error.low, error.high), strict=True))
        for reader, name in enumerate(("belief_r2", "belief_r2_last_token")):
            share = self.belief_r2(reader)
            if share is not None:
                found[f"truth/{name}"] = share.estimate
        return found


def truth_of(
    predicted: Float[np.ndarray, "sequence root depth symbol"],
    exact: Float[np.ndarray, "sequence root depth symbol"],
    marginals: Float[np.ndarray, "sequence root depth symbol"],
    noise: Parts,
    structural: Parts,
    told: bool,
    belief_errors: Float[np.ndarray, "test reader"],
    belief_spread: Float[np.ndarray, " test"],
) -> Truth:
    """Return the evaluation of what depths said.

    Args:
        predicted: the probabilities of the source's tokens, by each depth; what is missing to 1 was given to others.
        exact: the law of the same token given all before it, NaN beyond the text.
        marginals: its law given the root alone.
        noise: of ``Source.true_split`` or ``GoalTexts.true_split``.
        structural: as well.
        told: whether depths from 2 on are told the tokens in between.
        belief_errors: as ``Truth`` has them.
        belief_spread: as well.
    """
    perfect = exact if told else marginals
    floor = noise if told else noise + structural
    luck = _cross_entropy(exact, perfect) - floor
    return Truth(
        loss=np.where(np.isfinite(noise), _cross_entropy(exact, predicted) - luck, np.nan),
        noise=noise,
        structural=structural,
        accept=np.minimum(exact, predicted).sum(axis=-1),
        accept_exact=np.minimum(exact, perfect).sum(axis=-1),
        belief_errors=belief_errors,
        belief_spread=belief_spread,
        told=np.array(told),
    )


def _cross_entropy(
    law: Float[np.ndarray, "*batch symbol"], predicted: Float[np.ndarray, "*batch symbol"]
) -> Float[np.ndarray, "*batch"]:
    with np.errstate(invalid="ignore"):
        return -np.where(law > 0, law * np.log(np.maximum(predicted, np.finfo(np.float64).tiny)), 0.0).sum(axis=-1)


_ARRAYS = tuple(field.name for field in fields(Truth))


def save_truth(truth: Truth, run_dir: Path, name: str) -> None:
    """Write one evaluation, whole or not at all."""
    arrays = {field: np.asarray(getattr(truth, field)) for field in _ARRAYS}
    write_arrays(run_dir / TRUTH_DIRECTORY / f"{name}.npz", arrays | {"format_version": np.array(FORMAT_VERSION)})


def load_truth(path: Path) -> Truth:
    """Read one evaluation.

    Raises:
        ArtefactError: the file is damaged, or of another version.
    """
    with opened_arrays(path) as archive:
        arrays = dict(archive)
    if set(arrays) != {*_ARRAYS, "format_version"} or int(arrays["format_version"]) != FORMAT_VERSION:
        raise ArtefactError(f"{path} was written by another version of worldmtp; run the evaluation again.")
    return Truth(**{name: arrays[name] for name in _ARRAYS})


def load_truths(run_dir: Path, problems: list[str]) -> dict[str, Truth]:
    """Read all evaluations of a run by name; one that cannot be read is named in ``problems``, a sentence."""
    found = {}
    paths = (run_dir / TRUTH_DIRECTORY).glob("*.npz")
    for path in sorted(path for path in paths if not path.name.startswith("values_")):  # those of ``value_truth``
        try:
            found[path.stem] = load_truth(path)
        except ArtefactError as error:
            problems.append(f"The truth beside an evaluation cannot be read: {error}")
    return found
