"""Settings of the model of replies; a file without torch, since the command line's schema is made of it."""

import math
from dataclasses import dataclass, replace

from worldmtp.choices import check_choice

CONTEXTS = ("turn", "history", "auto")


@dataclass(frozen=True)
class ReplyModelConfig:
    """A small ensemble of its own that foretells what a world writes, pays and ends; see ``dynamics.replies``.

    The defaults are one setting for all worlds. Learning rate and number of updates are what matters most: a model of
    16 episodes a batch is under-trained long before it is over-fitted.
    """

    num_members: int = 3
    """Members of the ensemble; member e never trains on the episodes whose number is e modulo this."""
    hidden_size: int = 32
    """Width of each member."""
    num_heads: int = 4
    """Attention heads, where the context is the history."""
    context: str = "auto"
    """``turn``: what was heard and said last; ``history``: all turns; ``auto``: what predicts held-out better."""
    settle_batches: int = 8
    """Batches after which ``auto`` keeps the better context alone."""
    autoregressive: bool = True
    """The tokens of a reply see the earlier ones by a small head; without, they are predicted in parallel and apart."""
    max_reply: int = 16
    """Tokens of the longest reply that can be modelled; a longer one is an error."""
    learning_rate: float = 5e-3
    """AdamW's."""
    weight_decay: float = 0.01
    """AdamW's."""
    num_updates: int = 64
    """Most gradient steps after a batch; learning stops early where the held-out error rises. With 32 of 16 episodes
    the replies of a world of chance were under-trained: .1 to .2 off in total variation where the policy had been."""
    batch_size_episodes: int = 64
    """Episodes a gradient step."""
    first_num_updates: int = 32
    """The same until two returns have differed. More of it makes members agree on what none of them has heard, and
    exploration goes by their disagreement."""
    first_batch_size_episodes: int = 16
    """The same until two returns have differed."""
    replay_episodes: int = 4096
    """Episodes that are kept."""
    rewarded_share: float = 0.25
    """Share of rewarded episodes in a minibatch while they are rarer than that among the recent ones."""
    recent_episodes: int = 400
    """Newest episodes that are looked at for how rare rewards are, and that lend imagined ones their openings."""
    max_grad_norm: float = 1.0
    """Norm at which the gradient is clipped."""

    def __post_init__(self) -> None:
        check_choice("context", self.context, CONTEXTS)
        counts = ("num_members", "hidden_size", "num_heads", "settle_batches", "max_reply", "num_updates")
        sizes = ("batch_size_episodes", "first_num_updates", "first_batch_size_episodes")
        for name in (*counts, *sizes, "replay_episodes", "recent_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.num_members < 2:
            raise ValueError(
                f"num_members={self.num_members} must be at least 2: each member is judged on episodes that it has not "
                "seen and another has."
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay} must be finite and not negative.")
        if not 0 <= self.rewarded_share < 1:
            raise ValueError(f"rewarded_share={self.rewarded_share} must be in [0, 1).")

    def at_first(self) -> "ReplyModelConfig":
        """Return these settings as they are until two returns have differed."""
        return replace(self, num_updates=self.first_num_updates, batch_size_episodes=self.first_batch_size_episodes)
