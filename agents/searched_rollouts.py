"""Real episodes acted by search: ``agent.rollout.act=search``, and what PPO makes of them.

Every token is drawn from b, what the search makes of the policy (``worldmtp.search.acting``), and stored with log b and
log pi_old. b is no policy that could be trained: a gradient has nothing to hold. What learns is pi, the prior that is
searched from. Its term at a step weighs the action by w = pi_old(a|s) / b(a|s),

    E_b[w A grad log pi(a|s)] = sum_a pi_old(a|s) A(s, a) grad log pi(a|s),

exactly, as b(a|s) > 0 wherever pi_old(a|s) > 0, and before weights are cut off at ``max_importance_weight``. States are
those that the searching agent comes to, and A are advantages of going on by search: the policy learns what is best to
propose to a search, and is not told what would have come without one. Values are those of acting by search for the same
reason. Where b is the policy, w is 1 and all of it is PPO.

Left out: products of weights over the steps of an episode, which would make the states the policy's own, at a variance
that grows with length; and weights of the value's loss.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.acting_search import check_search, make_search_policy
from worldmtp.agents.config import PPOConfig, RolloutConfig
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import SearchPolicy
from worldmtp.agents.world_search import WorldSearchPolicy
from worldmtp.dynamics.conversations import ReplySource
from worldmtp.envs import TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.random import stream_seed


def importance_weights(rollout: Rollout, largest: float) -> Float[Tensor, "batch step"]:
    """Return min(pi_old / b, ``largest``) of every action; 1 where the policy itself has acted."""
    assert rollout.behaviour_logprobs is not None  # made where it is not given
    return (rollout.logprobs - rollout.behaviour_logprobs).exp().clamp_max(largest)


class SearchedRollouts:
    """Who acts by search in the rows of ``env``, from which iteration on, and what is counted of it.

    ``learns_replies``: the run learns a model of replies. ``generator`` is what the search draws from inside its trees,
    a stream of the seed's own.

    Raises:
        ValueError: nothing says how to search; truncated episodes go on in value; the heads are blind to actions or do
            not look so far; or there is nobody to ask for replies.
    """

    def __init__(
        self,
        how: ActingSearch | None,
        model: MTPModel,
        env: TextVectorEnv,
        rollout: RolloutConfig,
        ppo: PPOConfig,
        seed: int,
        learns_replies: bool = False,
    ) -> None:
        if how is None:
            raise ValueError("rollout.act='search' and nothing says how; give search=ActingSearch(...) as well.")
        name = "agent.rollout.act=search"
        ppo.check_searched(name)
        how = how.discounted_by(ppo.gamma)  # as the values that it reads
        try:
            check_search(how, model, env, learns_replies)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}, by search.dynamics={how.dynamics}: {error}") from error
        self.how, self._model, self._env, self._rollout, self._ppo = how, model, env, rollout, ppo
        self.generator = torch.Generator().manual_seed(stream_seed(seed, "search while acting"))

    def acts(self, iteration: int, replies: ReplySource | None) -> bool:
        """Return whether the search acts in this iteration, counted from 0, and not the policy by itself.

        ``replies`` is the model of replies of now; a search that asks one waits until it has learnt.
        """
        is_known = replies is not None or self.how.dynamics != "replies"
        return is_known and iteration >= self._rollout.search_after

    def policy(self, replies: ReplySource | None) -> SearchPolicy | WorldSearchPolicy:
        """Return who acts, by the model and the replies as they are now."""
        temperature = self._rollout.temperature
        return make_search_policy(self.how, self._model, self._env, temperature, self.generator, replies)

    def metrics(self, rollout: Rollout, policy: SearchPolicy | WorldSearchPolicy) -> dict[str, float]:
        """Return what the search took of the trunk, and how far from the policy it acted."""
        assert rollout.behaviour_logprobs is not None  # made where it is not given
        mask = rollout.step_mask
        weights = importance_weights(rollout, self._ppo.max_importance_weight)[mask].double()
        return {
            "rollout/search_trunk_tokens": policy.tokens_read / rollout.num_tokens,
            "rollout/search_kl": float((rollout.behaviour_logprobs - rollout.logprobs)[mask].mean()),
            "rollout/importance_weight_mean": float(weights.mean()),
            "rollout/effective_sample_share": float(weights.sum() ** 2 / (len(weights) * weights.square().sum())),
        }
