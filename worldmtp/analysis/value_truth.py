"""Imagined returns beside exact values, where the policy's answers could be enumerated.

A realized return is one draw; V is its mean, so that what is imagined may be right to the last digit. The places are
those of ``EvalArtefact.imagined_return``, of the first rows of an evaluation.

    <run>/truth/values_<evaluation>.npz
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from worldmtp.analysis.artefacts import ArtefactError, EvalArtefact, opened_arrays, write_arrays
from worldmtp.analysis.return_agreement import ReturnAgreement, return_agreement
from worldmtp.analysis.truth import TRUTH_DIRECTORY

_PREFIX = "values_"
_ENDS = ("", "_lo90", "_hi90")


@dataclass(frozen=True)
class ExactValues:
    """V of the states of the first answers, NaN elsewhere; what was left out of it is less than ``missing``."""

    values: Float[np.ndarray, "row length"]
    missing: float

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not 0 <= self.missing <= 1:
            raise ValueError(
                f"values of shape {self.values.shape} and missing={self.missing}; expected rows and a share."
            )

    def instead_of_draws(self, artefact: EvalArtefact) -> EvalArtefact:
        """Return the first answers of the evaluation with values where a return was realized.

        Raises:
            ValueError: they are of other texts.
        """
        if self.values.shape[1:] != artefact.input_ids.shape[1:] or len(self.values) > len(artefact):
            raise ValueError(
                f"values have the shape {self.values.shape} and the texts {artefact.input_ids.shape}; give those of "
                "one evaluation."
            )
        rows = slice(len(self.values))
        arrays = {name: value[rows] for name, value in vars(artefact).items() if isinstance(value, np.ndarray)}
        return replace(artefact, **(arrays | {"realized_return": self.values}))

    def agreement(self, artefact: EvalArtefact) -> ReturnAgreement:
        """Return how imagined returns and values go together."""
        return return_agreement(self.instead_of_draws(artefact), generator=0)

    def of_draws(self, artefact: EvalArtefact) -> ReturnAgreement:
        """Return how values and realized returns go together: their correlation is the ceiling of any imagination's.

        The bias is that of the draws, and 0 within its interval unless a reward was given that no score is of.
        """
        drawn = self.instead_of_draws(artefact)
        realized = artefact.realized_return[: len(self.values)]
        return return_agreement(replace(drawn, imagined_return=self.values, realized_return=realized), generator=0)

    def scalars(self, artefact: EvalArtefact) -> dict[str, float]:
        """Return the numbers by the tags they are logged under, those that are defined."""
        found = self.agreement(artefact)
        scalars = {"truth/value_missing": self.missing}
        if found.bias is not None:
            ends = (found.bias.estimate, found.bias.low, found.bias.high)
            scalars |= {f"truth/value_bias{end}": value for end, value in zip(_ENDS, ends, strict=True)}
        if found.pearson is not None:
            scalars["truth/value_corr"] = found.pearson.estimate
        if (ceiling := self.of_draws(artefact).pearson) is not None:
            scalars["truth/value_ceiling"] = ceiling.estimate
        return scalars


def save_values(values: ExactValues, run_dir: Path, name: str) -> None:
    """Write the values of one evaluation, whole or not at all."""
    arrays = {"values": values.values, "missing": np.array(values.missing)}
    write_arrays(run_dir / TRUTH_DIRECTORY / f"{_PREFIX}{name}.npz", arrays)


def load_values(run_dir: Path, problems: list[str]) -> dict[str, ExactValues]:
    """Read those of all evaluations by name; one that cannot be read is named in ``problems``, a sentence."""
    found = {}
    for path in sorted((run_dir / TRUTH_DIRECTORY).glob(f"{_PREFIX}*.npz")):
        try:
            with opened_arrays(path) as archive:
                found[path.stem.removeprefix(_PREFIX)] = ExactValues(archive["values"], float(archive["missing"]))
        except ArtefactError as error:
            problems.append(f"Exact values cannot be read: {error}")
    return found
