"""The same visits, weights and values as mctx on random problems; ``mctx_golden.py`` wrote what mctx found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.dynamics import acting_policy
from worldmtp.search import SearchConfig, SearchedPolicy, gumbel_muzero_policy, muzero_policy

GOLDEN = np.load(Path(__file__).parent / "golden" / "mctx.npz")
NUM_PROBLEMS = 1 + max(int(key.split("/")[0]) for key in GOLDEN)


def by_token(found: SearchedPolicy, values: torch.Tensor) -> np.ndarray:
    """Put what belongs to the root's slots in the order of tokens."""
    return torch.zeros_like(values).scatter(1, found.tokens, values).numpy()


@pytest.mark.parametrize("seed", range(NUM_PROBLEMS))
@pytest.mark.parametrize("name", ["gumbel_muzero", "muzero"])
def test_agrees_with_mctx(name: str, seed: int, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
    problem = make_problem(seed)
    world_model = make_tables(problem)
    state, policy = world_model.roots, acting_policy(1.0)
    config = SearchConfig(num_simulations=problem.num_simulations, max_depth=problem.max_depth)
    invalid = torch.from_numpy(problem.invalid)
    # The slots of a root are sorted by its prior: noise is given in their order.
    logits = torch.from_numpy(problem.logits[problem.roots]).log_softmax(dim=-1).masked_fill(invalid, -torch.inf)
    order = logits.topk(logits.shape[1]).indices

    if name == "gumbel_muzero":
        gumbel = torch.from_numpy(GOLDEN[f"{seed}/gumbel"]).gather(1, order)
        found = gumbel_muzero_policy(
            world_model, state, policy, config, invalid=invalid, gumbel=gumbel, num_considered=problem.num_considered
        )
    else:
        # mctx mixes the noise in before it takes invalid actions out, so that it weighs less beside what they had.
        valid = torch.from_numpy(problem.logits[problem.roots]).softmax(dim=-1).masked_fill(invalid, 0.0)
        noise = torch.from_numpy(GOLDEN[f"{seed}/noise"]).gather(1, order) / valid.sum(dim=1, keepdim=True)
        found = muzero_policy(world_model, state, policy, config, invalid=invalid, noise=noise, temperature=0.0)

    visits = by_token(found, found.tree.root.child_visits)
    np.testing.assert_array_equal(visits, GOLDEN[f"{seed}/{name}_visits"])
    # mctx keeps values in float32.
    np.testing.assert_allclose(found.value.numpy(), GOLDEN[f"{seed}/{name}_value"], atol=1e-5)
    np.testing.assert_allclose(by_token(found, found.weights), GOLDEN[f"{seed}/{name}_weights"], atol=1e-5)
    if name == "gumbel_muzero":
        np.testing.assert_array_equal(found.actions.numpy(), GOLDEN[f"{seed}/{name}_action"])
    else:  # mctx draws among the most visited
        actions = found.actions.numpy()[:, None]
        assert (np.take_along_axis(visits, actions, axis=1)[:, 0] == visits.max(axis=1)).all()
