"""Who acts by search: the policy of an ``ActingSearch`` in an environment, and whether there can be one."""

from functools import partial
from typing import Any

import torch

from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import OnPlan, SearchPolicy
from worldmtp.agents.search_verification import TrunkVerifier
from worldmtp.agents.world_search import WorldSearchPolicy, check_cut_off
from worldmtp.dynamics import WorldModel, check_action_conditional, make_world_model
from worldmtp.dynamics.conversations import ReplySource
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.imagined_world import turn_limit
from worldmtp.envs.world_replies import WorldReplies
from worldmtp.model import MTPModel
from worldmtp.search.q_transforms import (
    by_parent_and_siblings,
    completed_by_mixed_value,
    completed_in_range,
    visited_in_range,
)
from worldmtp.search.selection import QTransform


def make_search_policy(
    how: ActingSearch,
    model: MTPModel,
    env: TextVectorEnv,
    temperature: float,
    generator: torch.Generator,
    replies: ReplySource | None = None,
    world_model: WorldModel[Any] | None = None,
    on_plan: OnPlan | None = None,
) -> SearchPolicy | WorldSearchPolicy:
    """Return the policy that searches so in the rows of ``env``; placebos and replies are drawn from ``generator``.

    ``replies`` is the model of replies that a search over ``replies`` asks; ``world_model`` comes in place of the one
    that is named.

    Raises:
        TypeError: the heads are blind to actions, or the trunk cannot verify.
        ValueError: there is nobody to ask for replies.
    """
    parts = model.device, on_plan, q_transform_of(how, model)
    if how.through_replies:
        trunk, source = make_world_model("oracle", model, generator), reply_source(how, env, replies)
        return WorldSearchPolicy(trunk, source, env, temperature, how, generator, *parts)
    world_model = world_model or make_world_model(how.dynamics, model, generator)
    verifier = TrunkVerifier(model, how.verify) if how.verify else None
    return SearchPolicy(world_model, env, temperature, how, *parts, verifier)


def q_transform_of(how: ActingSearch, model: MTPModel) -> QTransform:
    """Return what the rule makes of Q values: by the node's own range, or by the range of the model's returns."""
    if how.scale == "node":
        return completed_by_mixed_value if how.rule == "gumbel" else by_parent_and_siblings
    low, high = model.config.value_range
    return partial(completed_in_range if how.rule == "gumbel" else visited_in_range, low=low, high=high)


def check_search(how: ActingSearch, model: MTPModel, env: TextVectorEnv, has_replies: bool) -> None:
    """Do nothing if acting can search so; ``has_replies``: there is a model of replies, or will be.

    Raises:
        TypeError: the heads are blind to actions, or the trunk cannot verify.
        ValueError: the search looks further ahead than they do, or there is nobody to ask for replies.
    """
    if how.through_replies:
        _check_replies(how, env, has_replies)
        return
    world_model = make_world_model(how.dynamics, model, torch.Generator())
    check_action_conditional(world_model)
    how.tree.depth(world_model.max_horizon)
    if how.verify:
        TrunkVerifier(model, how.verify)


def reply_source(how: ActingSearch, env: TextVectorEnv, replies: ReplySource | None) -> ReplySource:
    """Return who is asked for replies.

    Raises:
        ValueError: nobody replies, the environment takes back what was paid, or there is no model of replies.
    """
    _check_replies(how, env, replies is not None)
    if how.dynamics == "world":
        return WorldReplies(env)
    assert replies is not None  # checked
    return replies


def _check_replies(how: ActingSearch, env: TextVectorEnv, has_replies: bool) -> None:
    check_cut_off(env)
    if how.dynamics == "world":
        WorldReplies(env)
        return
    turn_limit(env)
    if not has_replies:
        raise ValueError(
            "a search through replies needs a model of them, which a run with imagination=episodes learns, or one with "
            "imagination=search and imagination.search.through_replies=true; give such a run, or search through the "
            "real world (dynamics world)."
        )
