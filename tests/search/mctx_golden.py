"""Solve the problems with mctx and write what it found, for the tests; in an environment of its own, with JAX.

    pip install mctx "jax[cpu]" && python tests/search/mctx_golden.py

mctx 0.0.6. Noise is drawn as mctx draws it, from the same key, and written down too.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from problems import NUM_PROBLEMS, Problem, make_problem

GOLDEN = Path(__file__).parent / "golden" / "mctx.npz"


@functools.partial(jax.jit, static_argnames=("num_simulations", "max_depth", "num_considered"))
def solve(
    tables: dict[str, Any],
    roots: Any,
    invalid: Any,
    key: Any,
    num_simulations: int,
    max_depth: int | None,
    num_considered: int,
) -> dict[str, Any]:
    """Return noise, visits, weights and values of both policies."""

    def recurrent_fn(params: Any, key: Any, action: Any, state: Any) -> Any:
        following = tables["following"][state, action]
        output = mctx.RecurrentFnOutput(
            reward=tables["rewards"][state, action],
            discount=tables["discounts"][state, action],
            prior_logits=tables["logits"][following],
            value=tables["values"][following],
        )
        return output, following

    root = mctx.RootFnOutput(prior_logits=tables["logits"][roots], value=tables["values"][roots], embedding=roots)
    shared = {
        "params": (),
        "root": root,
        "recurrent_fn": recurrent_fn,
        "num_simulations": num_simulations,
        "invalid_actions": invalid,
        "max_depth": max_depth,
    }
    dtype = root.prior_logits.dtype
    gumbel = jax.random.gumbel(jax.random.split(key)[1], root.prior_logits.shape, dtype=dtype)
    planned = mctx.gumbel_muzero_policy(
        rng_key=key, max_num_considered_actions=num_considered, gumbel_scale=1.0, **shared
    )
    batch, actions = root.prior_logits.shape
    noise = jax.random.dirichlet(jax.random.split(key, 3)[1], alpha=jnp.full([actions], fill_value=0.3), shape=(batch,))
    visited = mctx.muzero_policy(rng_key=key, temperature=0.0, **shared)
    found = {"gumbel": gumbel, "noise": noise}
    for name, output in (("gumbel_muzero", planned), ("muzero", visited)):
        summary = output.search_tree.summary()
        found[f"{name}_action"] = output.action
        found[f"{name}_weights"] = output.action_weights
        found[f"{name}_visits"] = summary.visit_counts
        found[f"{name}_value"] = summary.value
    return found


def _solved(problem: Problem, seed: int) -> dict[str, np.ndarray]:
    names = ("following", "logits", "values", "rewards", "discounts")
    found = solve(
        {name: jnp.asarray(getattr(problem, name)) for name in names},
        jnp.asarray(problem.roots),
        jnp.asarray(problem.invalid),
        jax.random.PRNGKey(seed),
        problem.num_simulations,
        problem.max_depth,
        problem.num_considered,
    )
    return {name: np.asarray(value) for name, value in found.items()}


def main() -> None:
    """Write all of them."""
    jax.config.update("jax_enable_x64", True)
    arrays: dict[str, np.ndarray] = {}
    for seed in range(NUM_PROBLEMS):
        arrays |= {f"{seed}/{name}": value for name, value in _solved(make_problem(seed), seed).items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
