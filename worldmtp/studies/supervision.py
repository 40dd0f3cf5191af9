"""Supervision density: how many targets a text gives with K depths, beside the one per token of next-token training.

The nominal gain is K. What a text really gives is less: the last k tokens of a document have no target at depth k, nor
has anything across a document's or a prompt's border. What it is *worth* is another question, which
``worldmtp.studies.densification`` measures in tokens.
"""

from dataclasses import dataclass

from worldmtp.objective.targets import DepthTargets


@dataclass(frozen=True)
class SupervisionDensity:
    """Targets per text and depth, and all of them over those of depth 1."""

    targets_per_text: tuple[float, ...]
    gain: float
    nominal_gain: int


def supervision_density(targets: DepthTargets) -> SupervisionDensity:
    """Count the targets of a batch.

    Raises:
        ValueError: depth 1 has none, so there is nothing to compare with.
    """
    counts = targets.mask.sum(dim=(0, 1)).tolist()
    if counts[0] == 0:
        raise ValueError("no text has a target at depth 1; check labels and masks.")
    per_text = tuple(count / targets.mask.shape[0] for count in counts)
    return SupervisionDensity(per_text, sum(counts) / counts[0], len(counts))
