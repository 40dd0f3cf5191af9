"""Objectives of papers, by name, as this project's configs. A preset holds the loss; heads and optimiser are elsewhere.

Where a paper leaves the trunk frozen, freeze it here too: L_1 is then a constant. ``configs/objective`` has the same
objectives as files; a test holds them equal.
"""

from worldmtp.choices import check_choice
from worldmtp.fused_losses import LossTerms
from worldmtp.objective import MTPObjective
from worldmtp.schedules import CoefSchedule, Frequency


def preset(name: str) -> MTPObjective:
    """The objective of that name.

    Raises:
        ValueError: no preset has that name.
    """
    check_choice("preset", name, PRESETS)
    return PRESETS[name]


PRESETS: dict[str, MTPObjective] = {
    # arXiv 2412.19437, eq. 25 and sec. 4.2: lambda 0.3 for the first 10T tokens, 0.1 for the rest.
    "deepseek_v3": MTPObjective(
        coef=CoefSchedule(kind="step", start=0.3, end=0.1, begin=10e12, unit="tokens"),
    ),
    # arXiv 2404.19737: the plain sum over all heads, the next token's among them.
    "gloeckle": MTPObjective(depth_weighting="uniform", coef=CoefSchedule(start=1.0)),
    # arXiv 2401.10774: weights 0.8^i; lambda_0 = 0.2 of joint training (Medusa-2). Its scale is moot if frozen (Adam).
    "medusa": MTPObjective(depth_weighting="medusa", coef=CoefSchedule(start=0.2)),
    # arXiv 2509.18362: weights 0.51, 0.31, 0.18 on a frozen trunk, so that lambda is one.
    "fastmtp": MTPObjective(depth_weighting="fastmtp", coef=CoefSchedule(start=1.0)),
    # arXiv 2511.05963: lambda_1 SmoothL1 + lambda_2 KL, averaged over the horizon, both towards stopped gradients. The
    # coefficients of one are ours.
    "nextlat": MTPObjective(terms=LossTerms(ce=0.0, kl=1.0, latent=1.0), coef=CoefSchedule(start=1.0)),
    # arXiv 2606.12370: end-to-end total variation alone, on a head trained before reinforcement. Even weights of one
    # leave it unscaled.
    "bebop": MTPObjective(terms=LossTerms(ce=0.0, e2e_tv=1.0), depth_weighting="uniform", coef=CoefSchedule(start=1.0)),
    # arXiv 1811.03115: one head's loss a minibatch. There depth 1 is among those drawn; here it is always trained.
    "blockwise": MTPObjective(
        depth_weighting="uniform", coef=CoefSchedule(start=1.0), frequency=Frequency(one_random_depth=True)
    ),
}
