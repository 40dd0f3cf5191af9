"""Is searching a language model's heads the same search as searching the model? Measured on a trained run.

    python benchmarks/search_duality.py --model runs/quickstart/<run> --env worldmtp/SpellBackward-v0   # two minutes

At the states of the model's own greedy answers to held-out prompts both are searched, by the same rule and with as many
simulations, and so are two placebos: heads that never move, and heads moved by somebody else's token.

The first table is the search, against that over the trunk: how often it chooses the same token, and how often where the
search over the trunk leaves the likeliest one; the total variation between the improved policies; and the mean
difference of the root's values. The second is why: what one step after
another, along the trunk's likeliest tokens, says otherwise than the trunk does.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmtp.agents.evaluation import Evaluator
from worldmtp.agents.rollout import state_index
from worldmtp.cli.arguments import load_model, model_directory, run_config
from worldmtp.cli.evaluate import environment_of
from worldmtp.dynamics import acting_policy, make_world_model
from worldmtp.search import SearchConfig, SearchedPolicy, TurnWorldModel, plan
from worldmtp.training.make import make_env

POLICY = acting_policy(1.0)


def greedy_states(model: Any, env: Any, num_prompts: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """Return the texts of greedy answers, their masks, the rows and places of their states, and what ends them."""
    examples = make_env(env, 1).examples("heldout", num_prompts, 0, "evaluation", fewer=True)
    rows = make_env(env, len(examples))
    rollout = Evaluator(rows, examples, 1.0, 0).run(model).greedy
    at, steps = rollout.step_mask.nonzero(as_tuple=True)
    places = state_index(rollout)[at, steps]
    return rollout.input_ids, rollout.attention_mask, at, places, rows.tokenizer.eos_id, rows.dataset.max_new


def spread(found: SearchedPolicy, vocab: int) -> Tensor:
    """Return the improved policy over all tokens."""
    return torch.zeros(len(found.tokens), vocab).scatter(1, found.tokens, found.weights)


def policy_of(world_model: Any, state: Any) -> Tensor:
    """Return the probabilities of the next token."""
    probs: Tensor = POLICY(world_model.predict(state).logits).exp()
    return probs


@torch.no_grad()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--env", required=True)
    add("--num-prompts", type=int, default=48)
    add("--simulations", type=int, nargs="+", default=[16, 64])
    add("--depth", type=int, nargs="+", default=[1, 3])
    given = parser.parse_args()
    torch.set_num_threads(1)
    directory = model_directory(given.model, "--model")
    env = environment_of(run_config(given.model), directory, given.env, {})
    model = load_model(directory, "cpu")
    ids, mask, rows, places, eos, max_new = greedy_states(model, env, given.num_prompts)
    names = ("oracle", "mtp", "shuffled", "identity")
    worlds = {name: make_world_model(name, model, torch.Generator().manual_seed(0)) for name in names}
    print(f"{len(rows)} states of {len(ids)} greedy answers; {given.env}\n")
    print("| depth | simulations | dynamics | same token | where not the likeliest | total variation | root |")
    print("|---|---|---|---|---|---|---|")
    for depth in given.depth:
        for simulations in given.simulations:
            config = SearchConfig(simulations, depth)
            found = {}
            for name, inner in worlds.items():
                world_model = TurnWorldModel(inner, [eos], ends_episode=True)
                root = world_model.encode(ids, mask, rows, places)
                found[name] = plan("gumbel", world_model, root, POLICY, config)
            trunk = found["oracle"]
            left = trunk.actions != trunk.tokens[:, 0]
            for name in names[1:]:
                same = found[name].actions == trunk.actions
                between = (spread(found[name], model.num_tokens) - spread(trunk, model.num_tokens)).abs().sum(dim=1) / 2
                value = (found[name].value - trunk.value).abs().mean()
                often = f"{same.float().mean():.3f} | {int(same[left].sum())} of {int(left.sum())}"
                row = f"{depth} | {simulations} | {name} | {often} | {between.mean():.3f} | {value:.3f}"
                print(f"| {row} |", flush=True)
    print("\n| steps | dynamics | total variation of the next token | value, difference | reward, difference |")
    print("|---|---|---|---|---|")
    states: dict[str, Any] = {name: world_model.encode(ids, mask, rows, places) for name, world_model in worlds.items()}
    is_open = torch.ones(len(rows), dtype=torch.bool)
    for step in range(1, (worlds["mtp"].max_horizon or max_new) + 1):
        tokens = policy_of(worlds["oracle"], states["oracle"]).argmax(dim=1)
        is_open &= tokens != eos
        states = {name: worlds[name].step(state, tokens) for name, state in states.items()}
        said = {name: worlds[name].predict(state) for name, state in states.items()}
        trunk_said = said["oracle"]
        for name in names[1:]:
            one = said[name]
            policies = [policy_of(worlds[which], states[which]) for which in (name, "oracle")]
            between = (policies[0] - policies[1]).abs().sum(dim=1) / 2
            value, reward = (one.value - trunk_said.value).abs(), (one.reward - trunk_said.reward).abs()
            means = " | ".join(f"{each[is_open].mean():.3f}" for each in (between, value, reward))
            print(f"| {step} | {name} | {means} |", flush=True)


if __name__ == "__main__":
    main()
