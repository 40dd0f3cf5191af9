"""What ``imagination=search`` searches: a world model up to the end of the policy's turn, or on through replies.

Either says which states of a rollout its roots are, in dynamics for a search. Neither may look at what was done there:
that what a term gives can be taken back without bias rests on it (``search``). So replies are learnt from a batch after
it was searched.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from worldmtp.agents.config import WorldModelConfig
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.imagination.known_replies import SEARCH_SETTING, KnownReplies
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.turns import turns_before
from worldmtp.agents.world_search import check_cut_off, masked_policy
from worldmtp.dynamics import Policy, WorldModel, check_action_conditional, check_horizon, make_world_model
from worldmtp.dynamics.protocol import Dynamics
from worldmtp.dynamics.turns import Turns
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.imagined_world import turn_limit
from worldmtp.envs.world_replies import WorldReplies
from worldmtp.model import MTPModel
from worldmtp.search import ConversationDynamics, TurnWorldModel
from worldmtp.search.turns import TurnState


@runtime_checkable
class SearchedWorld(Protocol):
    """Dynamics for a search, and where in them the states of a rollout are.

    ``inner`` reads the policy's texts; ``policy`` acts at every node.
    """

    inner: WorldModel[Any]
    policy: Policy

    @property
    def is_ready(self) -> bool:
        """Whether anything can be searched yet."""
        ...

    def begin(
        self, rollout: Rollout, states: Any, rows: Int[Tensor, " state"], steps: Int[Tensor, " state"]
    ) -> tuple[Dynamics[Any], Any]:
        """Return dynamics, and the roots at (row, step) of a rollout, of which ``inner`` has the ``states``."""
        ...

    def observe(self, rollout: Rollout) -> None:
        """Take in a batch that has been searched."""
        ...

    def learn(self) -> dict[str, float]:
        """Learn from what was observed; return metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, from a dictionary that holds more."""
        ...


class WithinTurn:
    """The world model's own latents, which end with the policy's turn or text.

    Raises:
        TypeError: the world model is blind to actions.
        ValueError: the horizon is beyond it.
    """

    is_ready = True

    def __init__(self, inner: WorldModel[Any], acting: Acting, eos_id: int, horizon: int, gamma: float) -> None:
        check_action_conditional(inner)
        check_horizon(inner, horizon)
        self.inner, self.policy, self._acting = inner, acting.policy, acting
        self._dynamics = TurnWorldModel(inner, [eos_id], acting.turns is None, gamma)

    def begin(
        self, rollout: Rollout, states: Any, rows: Int[Tensor, " state"], steps: Int[Tensor, " state"]
    ) -> tuple[Dynamics[Any], TurnState]:
        """Return the states with the room that is left to the text and to the turn."""
        room = rollout.actions.shape[1] - steps
        turn = self._acting.room(rollout, rows, steps)
        return self._dynamics, TurnState(room if turn is None else torch.minimum(room, turn.room), states)

    def observe(self, rollout: Rollout) -> None:
        """Do nothing: the world model has its own learner."""

    def learn(self) -> dict[str, float]:
        """Return no metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read nothing."""


class ThroughReplies:
    """The trunk's reading of texts, and the replies that a run learns, or those of the real world.

    ``oracle`` asks worlds like those of ``env``: told what was said up to a state, they say what is hidden, too.

    Raises:
        ValueError: nobody replies in the environment, it takes back what was paid, or the back-end learns no replies.
    """

    def __init__(
        self,
        env: TextVectorEnv,
        model: MTPModel,
        acting: Acting,
        world_model: WorldModelConfig,
        generators: dict[str, torch.Generator],
    ) -> None:
        check_cut_off(env)
        self._env, self._max_turn = env, turn_limit(env)
        self._heard = KnownReplies(env, model, world_model, generators["world_model"], SEARCH_SETTING)
        self.inner: WorldModel[Any] = make_world_model("oracle", model, generators["placebo"])
        self.policy = masked_policy(acting.policy, env)
        if self._heard.is_real:
            WorldReplies(env)  # fail here rather than in the first search
        self._generator = generators["imagination"]

    @property
    def heard(self) -> KnownReplies:
        """What is known of the world's replies."""
        return self._heard

    @property
    def is_ready(self) -> bool:
        """Whether replies have been learnt, or need not be."""
        return self._heard.has_learnt

    def begin(
        self, rollout: Rollout, states: Any, rows: Int[Tensor, " state"], steps: Int[Tensor, " state"]
    ) -> tuple[Dynamics[Any], Any]:
        """Return conversations by the replies of now, and how they stood, with what was said and heard by then."""
        dataset, device, eos_id = self._env.dataset, rows.device, self._env.tokenizer.eos_id
        source = self._heard.source(device)
        assert source is not None  # is_ready was asked
        longest = min(self._max_turn or dataset.max_steps, dataset.max_steps)
        turns, said = turns_before(rollout, rows, steps, eos_id, self._max_turn, dataset.max_new, longest)
        turns = Turns(**{name: values.to(device) for name, values in vars(turns).items()})
        written = rollout.action_index[rows, steps] - rollout.prompt_length[rows]
        dynamics = ConversationDynamics(self.inner, source, eos_id, self._max_turn, self._generator)
        room, num_left = dataset.max_new - written, dataset.max_steps - steps
        return dynamics, dynamics.begin(states, source.begin(turns, rows), said.to(device), room, num_left)

    def observe(self, rollout: Rollout) -> None:
        """Hear the batch's conversations."""
        self._heard.observe(rollout)

    def learn(self) -> dict[str, float]:
        """Learn the replies from what was heard; return metrics."""
        return self._heard.learn()[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what was heard and learnt."""
        return {"replies": self._heard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._heard.load_state_dict(state["replies"])
