"""The per-depth metrics of an artefact by the tags they are logged under."""

from worldmtp.analysis import metrics
from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.analysis.calibration import reliability
from worldmtp.analysis.rooted import rooted_predictions


def depth_scalars(artefact: EvalArtefact) -> dict[str, float]:
    """Every per-depth metric by its tag; NaN where no root reaches."""
    rooted = rooted_predictions(artefact)
    means = {
        "ce": metrics.cross_entropy(rooted).mean(),
        "ce_chain": metrics.chain_cross_entropy(rooted).mean(),
        "gap": metrics.gap(rooted).mean(),
        "top1": metrics.agreement(rooted).mean(),
        "accept": metrics.acceptance(rooted).mean(),
        "survival": metrics.survival(rooted).mean(),
        "wci": metrics.path_consistency(rooted).mean(),
        "kl": metrics.path_divergence(rooted).mean(),
        "entropy": metrics.prediction_entropy(rooted).mean(),
    }
    depths = range(1, artefact.num_depths + 1)
    scalars = {f"world_model/depth_{k}/{name}": float(values[k - 1]) for name, values in means.items() for k in depths}
    scalars |= {f"world_model/depth_{k}/ece": reliability(rooted, k).expected_calibration_error for k in depths}
    scalars["world_model/h_eff"] = float(means["survival"].sum())
    return scalars
