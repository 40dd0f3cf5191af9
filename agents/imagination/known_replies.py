"""What a run knows of its world's replies: the real conversations there have been, and an ensemble learnt from them.

``world_model.backend`` names what they learn: ``mtp`` the conversations as they were; ``shuffled`` with the words of
other turns, and ``identity`` with none, which are the placebos. ``oracle`` learns nothing, as the real world is asked.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.config import WorldModelConfig
from worldmtp.agents.imagination.reply_models import reply_sizes
from worldmtp.agents.rollout import Rollout, episode_returns
from worldmtp.agents.turns import turns_of
from worldmtp.choices import check_choice
from worldmtp.dynamics.conversations import ForeseenReplies, ReplySource
from worldmtp.dynamics.reply_learning import ReplyModels, TurnReplay, is_rewarded, shuffled
from worldmtp.dynamics.turns import Turns
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.imagined_world import turn_limit
from worldmtp.envs.world_replies import WorldReplies
from worldmtp.model import MTPModel

WORLDS = ("mtp", "oracle", "shuffled", "identity")
"""Names of ``world_model.backend`` where it is the world's replies that are learnt."""


SEARCH_SETTING = "imagination.search.through_replies=true"


def check_replies_backend(backend: str, use: str) -> None:
    """Raise if ``world_model.backend`` names no way to learn replies; ``use`` is who asks.

    Raises:
        ValueError: it does not.
    """
    check_choice(f"world_model.backend with {use}", backend, WORLDS)


@dataclass
class Seen:
    """What the real episodes have shown so far."""

    lowest: float = float("inf")
    highest: float = float("-inf")
    most_turns: int = 1
    lowest_in_a_row: int = 0
    """Real batches up to now in which every episode had the lowest return."""

    def observe(self, returns: Float[Tensor, " episode"], turns: Turns) -> None:
        """Note a real batch."""
        self.lowest, self.highest = min(self.lowest, float(returns.min())), max(self.highest, float(returns.max()))
        is_lowest = not bool(is_rewarded(returns, self.lowest).any())
        self.lowest_in_a_row = self.lowest_in_a_row + 1 if is_lowest else 0
        self.most_turns = max(self.most_turns, int(turns.num_turns.max()))

    @property
    def returns_differ(self) -> bool:
        """Whether two real returns have differed."""
        return self.highest > self.lowest + 1e-6


class KnownReplies:
    """The replies of ``env``, learnt from its conversations; ``use`` names who asks, in messages.

    Raises:
        ValueError: nobody replies in the environment, or the back-end learns no replies.
    """

    def __init__(
        self, env: TextVectorEnv, model: MTPModel, world_model: WorldModelConfig, generator: torch.Generator, use: str
    ) -> None:
        check_replies_backend(world_model.backend, use)
        self._env, self._backend, self._generator = env, world_model.backend, generator
        self._max_turn = turn_limit(env)
        self._world: WorldReplies | None = None
        self.seen = Seen()
        self.replay = TurnReplay(world_model.replies.replay_episodes)
        self.models = ReplyModels(
            reply_sizes(env, model, world_model.replies),
            world_model.replies,
            model.world_heads.reward_bins.cpu(),
            generator,
            blind=self._backend == "identity",
        )

    @property
    def is_real(self) -> bool:
        """Whether the real world replies, so that nothing is learnt."""
        return self._backend == "oracle"

    @property
    def has_learnt(self) -> bool:
        """Whether anything is known of replies: learnt from one, or known of the real world."""
        return self.is_real or self.models.has_learnt

    def source(self, device: torch.device) -> ReplySource | None:
        """Return who says now what the world would reply, as a search on ``device`` asks; None while nobody knows."""
        if self.is_real:
            self._world = self._world or WorldReplies(self._env)
            return self._world
        if not self.has_learnt:
            return None
        model = self.models.best.model
        if device.type != "cpu":  # learnt on the host
            model = copy.deepcopy(model).to(device)
        return ForeseenReplies(model, self.seen.most_turns)

    def turns_of(self, rollout: Rollout) -> Turns:
        """Return the whole turns of real episodes."""
        return turns_of(rollout, self._env.tokenizer.eos_id, self._max_turn, self._env.dataset.max_new)

    def observe(self, rollout: Rollout) -> None:
        """Take in a real batch; nothing trains on it yet."""
        turns = self.turns_of(rollout)
        self.seen.observe(episode_returns(rollout), turns)
        if not self.is_real:
            told = shuffled(turns, self._generator) if self._backend == "shuffled" else turns
            self.replay.add(told, rollout.group)
            self.models.observe(turns)

    def learn(self) -> tuple[dict[str, float], float]:
        """Train the models on what was observed; return metrics, and the held-out error's ratio with other words.

        Where nothing is learnt, or no turn was heard, there are no metrics, and the ratio is infinite.
        """
        if self.is_real or not len(self.replay):
            return {}, float("inf")
        learned = self.models.learn(self.replay, self.seen.lowest, self._generator)
        best = self.models.best
        real, other = best.held_out_nats(self.replay), best.shuffled_nats(self.replay, self._generator)
        ratio = other / max(real, 1e-6)
        return {
            "world_model/reply_nats_before": learned.nats_before,
            "world_model/reply_nats": learned.nats,
            "world_model/reply_updates": float(learned.num_updates),
            "world_model/reply_history": float(self.models.context == "history"),
            "world_model/reply_action_ratio": min(ratio, 1e3),
        }, ratio

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {
            "seen": asdict(self.seen),
            "replay": self.replay.state_dict(),
            "models": self.models.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.seen = Seen(**state["seen"])
        self.replay.load_state_dict(state["replay"])
        self.models.load_state_dict(state["models"])
