"""What to do after a search: Gumbel MuZero's policy and MuZero's.

``gumbel_muzero_policy`` plans with few simulations: where its Q values are right, the improved policy is never worse
than the prior (Danihelka et al. 2022, section 3.2). ``muzero_policy`` is PUCT with Dirichlet noise at the root.

Both search the policy that acts: ``policy`` turns logits into its log-probabilities (temperature, masks), as for
``imagine``. Randomness is drawn from ``generator``, or given.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.choices import check_choice
from worldmtp.dynamics.imagination import Policy
from worldmtp.dynamics.protocol import Dynamics, StorableState
from worldmtp.model.categorical import draw
from worldmtp.search.config import RULES, SearchConfig
from worldmtp.search.q_transforms import by_parent_and_siblings, completed_by_mixed_value
from worldmtp.search.search import read_root, search
from worldmtp.search.selection import (
    QTransform,
    gumbel_interior,
    gumbel_root,
    gumbel_scores,
    halving_table,
    puct,
)
from worldmtp.search.tree import Reading, SearchTree


@dataclass(frozen=True)
class SearchedPolicy:
    """The outcome of a search. ``weights`` are probabilities of ``tokens``, the root's kept ones."""

    actions: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch width"]
    weights: Float[Tensor, "batch width"]
    value: Float[Tensor, " batch"]
    """Of the root, after the search."""
    tree: SearchTree = field(repr=False)


@torch.no_grad()
def gumbel_muzero_policy(
    world_model: Dynamics[Any],
    state: StorableState,
    policy: Policy,
    config: SearchConfig,
    generator: torch.Generator | None = None,
    *,
    invalid: Bool[Tensor, "batch vocab"] | None = None,
    num_considered: int = 16,
    gumbel_scale: float = 1.0,
    gumbel: Float[Tensor, "batch width"] | None = None,
    q_transform: QTransform = completed_by_mixed_value,
) -> SearchedPolicy:
    """Search by sequential halving among the Gumbel-top-m tokens; act by what is left, learn from the weights.

    ``weights`` are softmax(logits + sigma(completed Q)) at the root. ``gumbel_scale=0`` acts greedily
    and draws nothing.

    Raises:
        TypeError: the world model is blind to actions.
        ValueError: as ``read_root``; or no candidate is to be considered; or there is neither noise nor generator.
    """
    if num_considered < 1:
        raise ValueError(f"num_considered={num_considered} must be at least 1.")
    root = read_root(world_model, state, policy, config, invalid)
    if gumbel is None:
        gumbel = gumbel_scale * _gumbel(root, generator) if gumbel_scale else torch.zeros_like(root.logits)
    noise = _shaped(gumbel, root, "gumbel")
    table = halving_table(min(num_considered, root.tokens.shape[1]), config.num_simulations, root.tokens.device)
    tree = search(
        world_model,
        state,
        root,
        policy,
        config,
        root_rule=lambda node: gumbel_root(node, noise, q_transform, table),
        interior_rule=lambda node: gumbel_interior(node, q_transform),
    )
    node = tree.root
    scores = gumbel_scores(node, noise, q_transform, node.child_visits.amax(dim=1))
    best = scores.masked_fill(node.logits.isneginf(), -torch.inf).argmax(dim=1, keepdim=True)
    return SearchedPolicy(
        actions=root.tokens.gather(1, best)[:, 0],
        tokens=root.tokens,
        weights=(node.logits + q_transform(node)).softmax(dim=-1),
        value=node.value,
        tree=tree,
    )


@torch.no_grad()
def muzero_policy(
    world_model: Dynamics[Any],
    state: StorableState,
    policy: Policy,
    config: SearchConfig,
    generator: torch.Generator | None = None,
    *,
    invalid: Bool[Tensor, "batch vocab"] | None = None,
    temperature: float = 1.0,
    dirichlet_fraction: float = 0.25,
    dirichlet_alpha: float = 0.3,
    noise: Float[Tensor, "batch width"] | None = None,
    q_transform: QTransform = by_parent_and_siblings,
) -> SearchedPolicy:
    """Search by PUCT; act by visit counts, to the power of 1 / ``temperature``, or by the most visited at 0.

    ``weights`` are the visits' shares.

    Raises:
        TypeError: the world model is blind to actions.
        ValueError: as ``read_root``; or there is neither noise nor generator; or a fraction or temperature is outside.
    """
    if not 0 <= dirichlet_fraction <= 1 or temperature < 0:
        raise ValueError(f"expected {dirichlet_fraction=} in [0, 1] and {temperature=} of at least 0.")
    root = read_root(world_model, state, policy, config, invalid)
    if noise is None and dirichlet_fraction > 0:
        noise = _dirichlet(root, dirichlet_alpha, generator)
    if noise is not None:
        root = _mixed(root, _shaped(noise, root, "noise"), dirichlet_fraction)
    tree = search(
        world_model,
        state,
        root,
        policy,
        config,
        root_rule=lambda node: puct(node, q_transform),
        interior_rule=lambda node: puct(node, q_transform),
    )
    node = tree.root
    weights = node.child_visits / node.child_visits.sum(dim=1, keepdim=True)
    weights = weights.to(node.logits.dtype)
    if temperature == 0:
        slots = weights.argmax(dim=1)
    else:
        if generator is None:
            raise ValueError(f"temperature={temperature} draws actions, so a generator must be given; or take 0.")
        slots = draw((weights.log() / temperature).log_softmax(dim=-1), generator)
    actions = root.tokens.gather(1, slots[:, None])[:, 0]
    return SearchedPolicy(actions, root.tokens, weights, node.value, tree)


def plan(
    rule: str,
    world_model: Dynamics[Any],
    state: StorableState,
    policy: Policy,
    config: SearchConfig,
    invalid: Bool[Tensor, "batch vocab"] | None = None,
    q_transform: QTransform | None = None,
) -> SearchedPolicy:
    """Search by the rule of that name without any noise: ``actions`` are its best, ``weights`` can be drawn from.

    The same state gives the same weights, so that the probability of a token that is drawn from them is known. By
    ``gumbel`` a quarter as many tokens are considered as there are simulations, at least 2 and 16 at most: texts have
    few likely tokens, and a budget that goes once to each of 16 looks no further than the next one. Without a
    ``q_transform`` each rule measures Q values by the node's own range, as in mctx.

    Raises:
        TypeError: the world model is blind to actions.
        ValueError: there is no such rule, or as ``read_root``.
    """
    check_choice("search", rule, RULES)
    if rule == "gumbel":
        considered = min(16, max(2, config.num_simulations // 4))
        return gumbel_muzero_policy(
            world_model,
            state,
            policy,
            config,
            invalid=invalid,
            gumbel_scale=0.0,
            num_considered=considered,
            q_transform=q_transform or completed_by_mixed_value,
        )
    return muzero_policy(
        world_model,
        state,
        policy,
        config,
        invalid=invalid,
        temperature=0.0,
        dirichlet_fraction=0.0,
        q_transform=q_transform or by_parent_and_siblings,
    )


def _shaped(noise: Tensor, root: Reading, name: str) -> Tensor:
    """Return noise that has a number for each candidate of each root.

    Raises:
        ValueError: it has not; a row too few would be the same for all roots.
    """
    if noise.shape != root.tokens.shape:
        raise ValueError(
            f"{name} has shape {tuple(noise.shape)}; expected {tuple(root.tokens.shape)}, a number for each candidate "
            "of each root."
        )
    return noise


def _mixed(root: Reading, noise: Float[Tensor, "batch width"], fraction: float) -> Reading:
    """Return the root with a part of its prior replaced; what may not be chosen stays so."""
    probs = (1 - fraction) * root.logits.softmax(dim=-1) + fraction * noise
    logits = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
    return Reading(
        root.tokens, logits.masked_fill(root.logits.isneginf(), -torch.inf), root.value, root.reward, root.discount
    )


def _need(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError(
            "a search that draws noise needs a generator; or give the noise, or set its scale or fraction to 0."
        )
    return generator


def _gumbel(root: Reading, generator: torch.Generator | None) -> Float[Tensor, "batch width"]:
    uniform = torch.rand(root.logits.shape, generator=_need(generator), device=_need(generator).device)
    uniform = uniform.double().clamp(1e-12, 1 - 1e-12)
    return (-torch.log(-torch.log(uniform))).to(root.logits)


def _dirichlet(root: Reading, alpha: float, generator: torch.Generator | None) -> Float[Tensor, "batch width"]:
    """Drawn by numpy, as torch's own Dirichlet takes no generator; over the tokens that may be chosen."""
    source = _need(generator)
    seed = int(torch.randint(2**62, (), generator=source, device=source.device))
    batch, width = root.tokens.shape
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_gamma(alpha, (batch, width))).to(root.logits)
    drawn = torch.where(root.logits.isneginf(), 0.0, drawn.clamp_min(torch.finfo(drawn.dtype).tiny))
    return drawn / drawn.sum(dim=1, keepdim=True)
