"""The frozen configs of acting by search and of ``imagination=search``; like ``config.py`` they need no torch."""

import math
from dataclasses import dataclass, field, replace

from worldmtp.choices import check_choice
from worldmtp.search.config import RULES, SearchConfig

ACTS = ("policy", "search")
"""Who chooses the tokens: the policy itself, or a search of what would follow them."""
THROUGH_REPLIES = ("replies", "world")
"""Names of ``ActingSearch.dynamics`` by which a search goes on through what the world replies."""
SCALES = ("node", "returns")
DYNAMICS = ("mtp", "oracle", "identity", "shuffled", *THROUGH_REPLIES)


@dataclass(frozen=True)
class ActingSearch:
    """How acting searches, in training, in its evaluations and in ``worldmtp eval --search``."""

    rule: str = "gumbel"
    """``gumbel`` (sequential halving, few simulations) or ``puct`` (visits by prior and value)."""
    dynamics: str = "mtp"
    """What is searched: the heads (``mtp``), the trunk (``oracle``), a placebo, or a conversation through its replies.

    ``mtp``, ``oracle``, ``identity`` and ``shuffled`` look ahead to the end of the policy's turn. ``replies`` goes on
    through those of a model of them, ``world`` through those of the real world; both read texts by the trunk.
    """
    tree: SearchConfig = field(default_factory=SearchConfig)
    scale: str = "returns"
    """What a difference of Q values is measured by: the ``node``'s own range, or that of all ``returns``.

    ``node`` is mctx's scale: with it the best and the worst token of a node are as far apart as Q values can be, by
    Gumbel's rule a factor of e^5 in probability, however little lies between them. That is right where values are
    exact; where they are learnt it acts by their errors. By ``returns`` a small difference stays small.
    """

    verify: int = 0
    """Root tokens whose lines the trunk reads before one is written, in one forward; 0: the search alone decides.

    For searches of the heads (``mtp`` and its placebos), in ``worldmtp eval --search``; see
    ``worldmtp.search.verification``.
    """

    def __post_init__(self) -> None:
        check_choice("search.rule", self.rule, RULES)
        check_choice("search.scale", self.scale, SCALES)
        check_choice("search.dynamics", self.dynamics, DYNAMICS)
        if self.verify < 0:
            raise ValueError(f"search.verify={self.verify} must be at least 0, where nothing is verified.")
        if self.verify and self.dynamics in ("oracle", *THROUGH_REPLIES):
            raise ValueError(
                f"search.verify={self.verify} with search.dynamics={self.dynamics}: the trunk has read all of that "
                "search itself, and there is nothing to verify; set search.dynamics=mtp, or search.verify=0."
            )

    def discounted_by(self, gamma: float) -> "ActingSearch":
        """Return the same search, by ``gamma`` where its tree says no discount."""
        return replace(self, tree=replace(self.tree, gamma=gamma)) if self.tree.gamma is None else self

    @property
    def through_replies(self) -> bool:
        """Whether the search goes on through what a world replies."""
        return self.dynamics in THROUGH_REPLIES

    @property
    def way(self) -> str:
        """How it is called in tables: ``gumbel over mtp, 32 simulations``."""
        where = "through" if self.through_replies else "over"
        verified = f", {self.verify} verified" if self.verify else ""
        return f"{self.rule} {where} {self.dynamics}, {self.tree.num_simulations} simulations{verified}"


@dataclass(frozen=True)
class SearchTargetConfig:
    """``imagination=search``: the policy learns from a search of its world model, beside PPO on the real answers.

    Biased by whatever the world model gets wrong, so that a gate decides when it is trained on; or ``corrected``, by
    which it cannot bias the policy gradient. The tokens that are looked ahead are ``imagination.horizon``.
    """

    coef: float = 1.0
    """Of the KL from the improved policy to the policy that learns. 0: nothing is searched, and it is plain PPO."""
    num_simulations: int = 16
    """Of each search. 0: nothing is searched, and it is plain PPO."""
    num_states: int = 128
    """States of an iteration's real answers that are searched, drawn without repeats; all, where there are fewer."""
    width: int = 16
    """Likeliest tokens of a node that a search knows; all others of a root are one action, never visited."""
    num_considered: int = 4
    """Tokens of a root that are tried at first, by Gumbel noise and prior; sequential halving goes on with the best."""
    corrected: bool = False
    """Take from the advantage of an action taken what the term gives it, so that no search moves the expected gradient.

    Then it lowers variance where the search is right, and is no shortcut to what the search believes.
    """
    through_replies: bool = False
    """Where a world replies, go on through its replies: those that the run learns, as ``world_model`` says.

    Then the trunk reads the texts, and the heads are not asked; ``imagination.horizon`` counts the policy's tokens.
    Off, a search ends with the policy's turn, at the value of the text there.
    """
    gated: bool = True
    """Off for placebos, whose gate would be shut. They too wait for ``gate_batches``."""
    gate_batches: int = 8
    """Real batches over which skill is averaged: the gate is open where the mean exceeds two standard errors."""

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"coef={self.coef} must be finite and not negative; 0 turns the search off.")
        least = {"num_simulations": 0, "num_states": 1, "width": 1, "num_considered": 1, "gate_batches": 2}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {number}.")

    @property
    def searches(self) -> bool:
        """Whether anything is searched."""
        return self.coef > 0 and self.num_simulations > 0
