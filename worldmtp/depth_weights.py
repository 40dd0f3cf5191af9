"""How much each depth's loss counts beside the others': one weight per depth, by the rule of a paper.

Pure numbers, without torch. What the weights are multiplied with over training is ``worldmtp.schedules``.

    mean       1/D                  DeepSeek-V3, arXiv 2412.19437, eq. 25
    uniform    1                    Gloeckle et al. 2024, arXiv 2404.19737: the plain sum
    harmonic   1/k
    medusa     0.8^(k-1)            Medusa, arXiv 2401.10774: 0.8^i for head i, which predicts token t+1+i: k = i + 1
    fastmtp    0.6^(k-2) / sum      FastMTP, arXiv 2509.18362: 0.51, 0.31, 0.18 for three depths

k is the depth (it predicts token t+k) and D the number of depths weighted. ``mean`` and ``fastmtp`` sum to one, so the
coefficient before them is the weight of all depths together; under the other rules it grows with D.
"""

from collections.abc import Callable, Sequence

from worldmtp.choices import check_choice

MEDUSA_DECAY = 0.8
FASTMTP_DECAY = 0.6


def depth_weights(name: str, num_additional_depths: int, first: int = 2) -> tuple[float, ...]:
    """Weights of the depths ``first`` .. ``first + num_additional_depths - 1``, by the rule of that name.

    With the first depth left at 2 these are depths 2 .. K for ``num_additional_depths`` = K - 1, the D of papers.
    Rules that sum to one do so over these depths.

    Raises:
        ValueError: the name is unknown, the number negative, or the first depth below 2.
    """
    check_choice("depth_weighting", name, DEPTH_WEIGHTINGS)
    if num_additional_depths < 0:
        raise ValueError(
            f"num_additional_depths={num_additional_depths} must be at least 0; it is K - 1, depth 1 is the trunk's."
        )
    if first < 2:
        raise ValueError(f"first={first} must be at least 2; depth 1 is the trunk's own loss and has weight one.")
    return tuple(_RULES[name](range(first, first + num_additional_depths)))


def _normalized(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]


_RULES: dict[str, Callable[[range], list[float]]] = {
    "mean": lambda depths: [1.0 / len(depths) for _ in depths],
    "uniform": lambda depths: [1.0 for _ in depths],
    "harmonic": lambda depths: [1.0 / k for k in depths],
    "medusa": lambda depths: [MEDUSA_DECAY ** (k - 1) for k in depths],
    "fastmtp": lambda depths: _normalized([FASTMTP_DECAY ** (k - 2) for k in depths]),
}

DEPTH_WEIGHTINGS = tuple(_RULES)
"""The rules' names."""
