"""Replies of several tokens: predicted in parallel with a small head, in parallel alone, or token by token.

    python benchmarks/reply_speed.py                      # two minutes on one core
    python benchmarks/reply_speed.py --lengths 2 8 --updates 200

A walker on an 8x8 grid moves where it is told, or slips to either side, in .2 of the moves; the reply is its row, its
column, and a banner that repeats them up to the length asked for. All three models have the same sizes and see the same
conversations in the same order. Token by token, the block over the turns runs again for each token of the reply, with
what has been said of it as input: what an autoregressive model of the same width costs.

Columns: nats a reply above the entropy of the world, held out by cross-fitting; training updates and imagined turns a
second, of a batch of 32, on one thread, and the latter over token by token.
"""

import argparse
import time
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_learning import ReplyLearner, TurnReplay
from worldmtp.dynamics.reply_network import ReplyNetwork, ReplySizes
from worldmtp.dynamics.turns import Turns

_SIDE, _SLIP, _NUM_TURNS = 8, 0.2, 12
_MOVES = torch.tensor([[0, -1], [1, 0], [0, 1], [-1, 0]])


class TokenByToken(ReplyNetwork):
    """The same network without the small head: each token of a reply is predicted by a pass of its own."""

    def reply_logits(
        self, vectors: Float[Tensor, "member row width"], replies: Int[Tensor, "row reply"]
    ) -> Float[Tensor, "member row reply vocab_and_end"]:
        """Return the logits of each place from a pass that has read the places before it."""
        places = [self._place(vectors, replies[:, :place]) for place in range(replies.shape[1])]
        return torch.stack(places, dim=2)

    def correction(
        self, mixed: Float[Tensor, "member row width"], earlier: Int[Tensor, "row earlier"]
    ) -> Float[Tensor, "member row vocab_and_end"]:
        """Return the logits of the next place; ``parallel_logits`` is nothing here."""
        return self._place(mixed, earlier)

    def parallel_logits(
        self, vectors: Float[Tensor, "member row width"], places: int
    ) -> Float[Tensor, "member row reply vocab_and_end"]:
        """Return zeros."""
        return vectors.new_zeros((*vectors.shape[:2], places, self.sizes.vocab_size + 1))

    def _place(self, vectors: Tensor, earlier: Tensor) -> Tensor:
        place, size = earlier.shape[1], self.sizes.vocab_size + 1
        read: Tensor = self.block((vectors + self.earlier(earlier))[:, :, None])[:, :, 0]
        weight, bias = self.parallel.weight, self.parallel.bias
        span = slice(place * size, (place + 1) * size)
        return torch.baddbmm(bias[..., span], read, weight[..., span])


def walks(num_episodes: int, length: int, seed: int) -> Turns:
    """Return conversations of random walks."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(_SIDE, (num_episodes, 2), generator=generator)
    opening, said, replies = place.clone(), [], []
    for _ in range(_NUM_TURNS):
        move = torch.randint(4, (num_episodes,), generator=generator)
        chance = torch.rand(num_episodes, generator=generator)
        turned = (chance < _SLIP / 2).long() - ((chance >= _SLIP / 2) & (chance < _SLIP)).long()
        place = (place + _MOVES[(move + turned) % 4]).clamp(0, _SIDE - 1)
        said.append(move)
        replies.append(place.repeat(1, -(-length // 2))[:, :length])
    return Turns(
        opening=opening,
        said=torch.stack(said, dim=1)[..., None],
        replies=torch.stack(replies, dim=1),
        rewards=torch.zeros((num_episodes, _NUM_TURNS)),
        ended=torch.zeros((num_episodes, _NUM_TURNS), dtype=torch.bool),
        mask=torch.ones((num_episodes, _NUM_TURNS), dtype=torch.bool),
    )


def entropy_of(turns: Turns) -> float:
    """Return the mean entropy of the next place, in nats: slips into a wall end where another move does, too."""
    before = torch.cat([turns.opening[:, None], turns.replies[:, :-1, :2]], dim=1)
    total = torch.zeros(before.shape[:2])
    weights = (1 - _SLIP, _SLIP / 2, _SLIP / 2)
    ways = [(before + _MOVES[(turns.said[..., 0] + turned) % 4]).clamp(0, _SIDE - 1) for turned in (0, 1, -1)]
    for way in ways:
        same = sum(w * (way == other).all(dim=2).float() for w, other in zip(weights, ways, strict=True))
        times = sum((way == other).all(dim=2).float() for other in ways)
        total -= torch.special.xlogy(same, same) / times
    return float(total.mean())


def measure(kind: str, length: int, updates: int) -> tuple[float, float, float]:
    """Return the excess nats, updates a second and imagined turns a second."""
    sizes = ReplySizes(vocab_size=_SIDE, opening=2, said=1, reply=length, num_turns=_NUM_TURNS, num_reward_bins=3)
    config = ReplyModelConfig(context="turn", max_reply=length, batch_size_episodes=32, num_updates=updates)
    config = replace(config, autoregressive=kind != "parallel alone")
    model = ReplyModel(sizes, config, False, torch.tensor([-1.0, 0.0, 1.0]), torch.Generator().manual_seed(0))
    if kind == "token by token":
        model.network = TokenByToken(sizes, config, False, torch.Generator().manual_seed(0))
    learner, replay = ReplyLearner(model, config), TurnReplay(10_000)
    turns = walks(512, length, seed=1)
    replay.add(turns)
    model.observe(turns)
    generator = torch.Generator().manual_seed(2)
    start = time.perf_counter()
    for _ in range(updates):
        learner._step(replay, torch.randint(len(replay), (32,), generator=generator), torch.ones(32))
    trained = updates / (time.perf_counter() - start)
    excess = learner.held_out_nats(replay, len(replay)) - entropy_of(turns)
    few = turns.select(torch.arange(32))
    start, repeats = time.perf_counter(), 50
    for number in range(repeats):
        model.imagine(few, torch.full((32,), number % _NUM_TURNS), generator)
    return excess, trained, repeats * 32 / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--updates", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| tokens a reply | model | nats above the entropy | updates / s | imagined turns / s | over token by token |"
    )
    print("|---|---|---|---|---|---|")
    for length in arguments.lengths:
        found = {
            kind: measure(kind, length, arguments.updates)
            for kind in ("token by token", "parallel and a small head", "parallel alone")
        }
        for kind, (excess, trained, imagined) in found.items():
            factor = imagined / found["token by token"][2]
            print(f"| {length} | {kind} | {excess:.3f} | {trained:.0f} | {imagined:.0f} | {factor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
