"""What a simulation of a search costs: over the heads, over the trunk with its cache, and over the text read anew.

    python benchmarks/search_cost.py                                  # four minutes on one core
    python benchmarks/search_cost.py --batch 16 --horizon 4 --simulations 8

A Qwen3 of 12 layers, narrow so that it runs anywhere, with random weights: what is searched has no meaning, and costs
what a trained model of its sizes costs. Prompts have ``--prompt`` tokens.

Seconds are the process's own on one thread, so that what else the machine does is not counted.

Columns: simulations a second, a batch's together; trunk tokens a simulation, the seconds of one simulation of one row
over those of one token of one row in a forward of the trunk with its cache, at the same batch; and the share of the
seconds that is spent outside the world model, in the arrays of the tree.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from worldmtp.dynamics import acting_policy, make_world_model
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.search import SearchConfig, gumbel_muzero_policy

VOCAB = 64
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Written(StateTable):
    """Whole texts, filled up on the right, and their lengths."""

    ids: Int[Tensor, "state length"]
    lengths: Int[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        """The length: nothing else is known before the text is read."""
        return self.lengths[:, None].float()


class Reencoding:
    """The trunk without a cache: a state is its text, and is read from the first token on."""

    action_conditional, max_horizon, models_replies = True, None, False

    def __init__(self, oracle: Any) -> None:
        self._oracle = oracle

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Written:
        """Return the texts."""
        return Written(input_ids, attention_mask.sum(dim=1))

    def step(self, state: Written, tokens: Int[Tensor, " state"]) -> Written:
        """Write a token behind each text."""
        longer = torch.nn.functional.pad(state.ids, (0, 1))
        return Written(longer.scatter(1, state.lengths[:, None], tokens[:, None]), state.lengths + 1)

    def predict(self, state: Written, with_logits: bool = True) -> Prediction:
        """Read the texts."""
        longest = int(state.lengths.max())
        mask = torch.arange(longest) < state.lengths[:, None]
        found: Prediction = self._oracle.predict(self._oracle.encode(state.ids[:, :longest], mask), with_logits)
        return found


class Clocked:
    """A world model whose steps and predictions are timed."""

    action_conditional, models_replies = True, False

    def __init__(self, inner: Any) -> None:
        self._inner, self.max_horizon, self.seconds = inner, inner.max_horizon, 0.0

    def encode(self, *given: Any) -> Any:
        """Encode by the world model inside."""
        return self._inner.encode(*given)

    def step(self, *given: Any) -> Any:
        """Step the world model inside."""
        return self._timed(self._inner.step, *given)

    def predict(self, *given: Any) -> Any:
        """Ask the world model inside."""
        return self._timed(self._inner.predict, *given)

    def _timed(self, ask: Callable[..., _Answer], *given: Any) -> _Answer:
        start = time.process_time()
        answer = ask(*given)
        self.seconds += time.process_time() - start
        return answer


def make_model(head: str, depth: int, layers: int, hidden: int) -> MTPModel:
    """Return a model with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden // 4,
        max_position_embeddings=512,
    )
    heads = MTPConfig(head=head, depth=depth)
    return MTPModel.from_trunk(Qwen3ForCausalLM(config), heads, torch.Generator().manual_seed(0)).eval()


def seconds_a_token(oracle: Any, root: Any, repeats: int) -> float:
    """Return the seconds of one cached trunk token of a row."""
    tokens = torch.zeros(len(root), dtype=torch.long)
    oracle.step(root, tokens)
    start = time.process_time()
    for _ in range(repeats):
        oracle.step(root, tokens)
    return (time.process_time() - start) / repeats / len(root)


@torch.no_grad()
def measure(world_model: Any, root: Any, config: SearchConfig, repeats: int) -> tuple[float, float]:
    """Return the seconds of one simulation of one row, and the share of them outside the world model; the best run."""
    best = (float("inf"), 0.0)
    for _ in range(1 + repeats):  # the first warms up
        clocked = Clocked(world_model)
        start = time.process_time()
        gumbel_muzero_policy(clocked, root, acting_policy(1.0), config, torch.Generator().manual_seed(0))
        seconds = time.process_time() - start
        best = min(best, (seconds, 1 - clocked.seconds / seconds))
    return best[0] / config.num_simulations / len(root), best[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[1, 16, 64])
    add("--horizon", type=int, nargs="+", default=[4, 8])
    add("--heads", nargs="+", default=["sequential", "eagle", "latent"])
    add("--simulations", type=int, default=32)
    add("--layers", type=int, default=12)
    add("--hidden", type=int, default=64)
    add("--prompt", type=int, default=64)
    add("--repeats", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| batch | horizon | dynamics | simulations / s | trunk tokens a simulation | outside the network |")
    print("|---|---|---|---|---|---|")
    for batch in given.batch:
        ids = torch.randint(VOCAB, (batch, given.prompt), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids, dtype=torch.bool)
        for horizon in given.horizon:
            config = SearchConfig(num_simulations=given.simulations, max_depth=horizon)
            models = {head: make_model(head, horizon + 1, given.layers, given.hidden) for head in given.heads}
            oracle = make_world_model("oracle", models[given.heads[0]], torch.Generator())
            worlds: dict[str, Any] = {
                f"heads, {head}": make_world_model("mtp", model, torch.Generator()) for head, model in models.items()
            } | {"trunk, cached": oracle, "trunk, the text anew": Reencoding(oracle)}
            with torch.no_grad():
                token = seconds_a_token(oracle, oracle.encode(ids, mask), 10)
            for name, world_model in worlds.items():
                with torch.no_grad():
                    root = world_model.encode(ids, mask)
                each, outside = measure(world_model, root, config, given.repeats)
                row = f"{batch} | {horizon} | {name} | {1 / each:.0f} | {each / token:.2f} | {outside:.0%}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
