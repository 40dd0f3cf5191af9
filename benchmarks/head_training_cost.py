"""Step time and logits memory of training with four heads over next-token training, for every family, side by side.

    python benchmarks/head_training_cost.py
    python benchmarks/head_training_cost.py --layers 12 --hidden 512 --repeats 15

One trunk size, one batch, forward, backward and optimiser step. The arms of a family are timed in turn within each
repeat, next to a next-token step on the same trunk, and the figure is the median over repeats of the ratio to it: what
slows the machine down slows both. Arms:

    naive          logits of all depths in memory, torch's cross-entropy
    fused          all depths at all positions, chunk by chunk (the default)
    quarter        fused, at a quarter of the positions
    random depth   fused, one depth drawn a step (Stern et al. 2018)

Heads are depths 2 .. 5, trained jointly with the trunk. The peak of logits held is counted, not sampled: bytes of the
tensors whose last axis is the vocabulary, alive at once.
"""

import argparse
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.heads import available_heads
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import multi_token_loss, next_token_loss
from worldmtp.objective.plan import Progress

OBJECTIVES = {
    "fused": MTPObjective(),
    "quarter": MTPObjective.from_dict({"frequency": {"position_fraction": 0.25}}),
    "random depth": MTPObjective.from_dict({"frequency": {"one_random_depth": True}}),
}


class LogitsPeak(TorchDispatchMode):
    """Counts bytes of live tensors whose last axis is the vocabulary, and of no other width; weights are left out."""

    def __init__(self, vocab_size: int, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note what the call made."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.ndim >= 2 and tensor.shape[-1] == self.vocab_size:
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.weights or key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))


def make_model(head: str, depth: int, args: argparse.Namespace) -> MTPModel:
    """A fresh trunk with heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        max_position_embeddings=args.length,
        tie_word_embeddings=True,
    )
    return MTPModel.from_trunk(LlamaForCausalLM(config), MTPConfig(head=head, depth=depth))


def stepper(
    model: MTPModel, ids: torch.Tensor, objective: MTPObjective | None, naive: bool = False
) -> Callable[[int], None]:
    """One training step as a function of its number."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    num_targets = ids.shape[0] * (ids.shape[1] - 1)

    def step(number: int) -> None:
        if naive:
            output = model(ids)
            targets = model.targets(ids, None, None, ids)
            labels = targets.targets.masked_fill(~targets.mask, -100)
            depths = enumerate(output.depth_logits)
            sums = [functional.cross_entropy(z.transpose(1, 2), labels[..., k], reduction="sum") for k, z in depths]
            loss = torch.stack(sums).sum() / num_targets
        else:
            features = model.trunk_features(ids)
            loss = next_token_loss(model, features, ids, ids)[0] / num_targets
            if objective is not None:
                plan = objective.plan(model.config.depth, Progress(number), seed=0)
                later = multi_token_loss(model, features, ids, ids, objective, plan)
                loss = loss + plan.coef * later.total / num_targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[int], None], number: int) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    step(number)
    return time.perf_counter() - begin


def peak_logits(step: Callable[[int], None], model: MTPModel, args: argparse.Namespace) -> float:
    """Megabytes of logits held at once in a step."""
    with LogitsPeak(args.vocab, list(model.parameters())) as peak:
        step(0)
    return peak.peak / 2**20


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 8), ("hidden", 256), ("vocab", 2053), ("batch", 8), ("length", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", nargs="*", default=available_heads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ids = torch.randint(0, args.vocab, (args.batch, args.length), generator=torch.Generator().manual_seed(0))
    print(
        f"{args.layers} layers x {args.hidden}, vocabulary {args.vocab}, {args.batch} x {args.length} tokens, depth 5"
    )
    trunk = make_model("sequential", 1, args)
    plain = stepper(trunk, ids, None)
    timed(plain, 0)
    print(f"next-token step: {statistics.median(timed(plain, n) for n in range(args.repeats)):.3f} s")
    print(f"peak logits, next token: {peak_logits(plain, trunk, args):.1f} MB")
    print("\n| family | heads | naive | fused | quarter | random depth | logits MB: naive | fused |\n|" + "---|" * 8)
    for head in args.heads:
        model = make_model(head, 5, args)
        arms = {"naive": stepper(model, ids, None, naive=True)}
        arms |= {name: stepper(model, ids, objective) for name, objective in OBJECTIVES.items()}
        ratios: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(args.repeats + 1):
            base = timed(plain, number)
            for name, step in arms.items():
                ratios[name].append(timed(step, number) / base)
        cells = [f"{statistics.median(values[1:]):.2f}x" for values in ratios.values()]
        memory = [f"{peak_logits(arms[name], model, args):.1f}" for name in ("naive", "fused")]
        size = sum(parameter.numel() for parameter in model.heads.parameters()) / 1e6
        print(f"| {head} | {size:.2f} M | {' | '.join([*cells, *memory])} |", flush=True)


if __name__ == "__main__":
    main()
