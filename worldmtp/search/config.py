"""How far and how wide a search goes, and the names of its rules; needs no torch, as configs of runs hold it."""

from dataclasses import dataclass

RULES = ("gumbel", "puct")

_MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class SearchConfig:
    """How far and how wide is searched."""

    num_simulations: int = 32
    """Nodes that a search adds to its tree."""
    max_depth: int | None = None
    """Tokens below the root. None: as many as simulations, or as the world model's horizon allows."""
    width: int = 16
    """Likeliest tokens of each node that are kept; the search cannot choose another. No more than there are."""
    gamma: float | None = None
    """What follows a token is discounted by it, as by the training of the values that are read.

    None: by ``agent.ppo.gamma`` where an agent learns, and elsewhere by 1.
    """
    max_bytes: int = _MAX_BYTES
    """Memory that the arrays of the trees may take, with the world model's state at every node."""

    def __post_init__(self) -> None:
        for name in ("num_simulations", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.max_depth is not None and self.max_depth < 1:
            raise ValueError(f"max_depth={self.max_depth} must be at least 1, or None.")
        if not 0 < self.discount <= 1:
            raise ValueError(
                f"gamma={self.gamma} must be in (0, 1]: by 0 nothing that follows a token counts, and above 1 what is "
                "far off counts most. Set gamma=1, or what the returns are discounted by that the values stand for."
            )

    @property
    def discount(self) -> float:
        """What follows a token is discounted by it: ``gamma``, or 1 where it is None."""
        return 1.0 if self.gamma is None else self.gamma

    def depth(self, max_horizon: int | None) -> int:
        """Return the deepest level in a world model that takes ``max_horizon`` steps; None is no limit.

        Raises:
            ValueError: ``max_depth`` is beyond its horizon.
        """
        if self.max_depth is not None and max_horizon is not None and self.max_depth > max_horizon:
            raise ValueError(
                f"max_depth={self.max_depth} is beyond the world model, which takes {max_horizon} steps; lower it, or "
                "train heads of a larger depth."
            )
        limits = [limit for limit in (self.max_depth, max_horizon, self.num_simulations) if limit is not None]
        return min(limits)
