"""The network that foretells replies: an ensemble computed at once, one position a turn.

A turn's position reads what was heard before it and what was said in it. From its vector ``h`` all tokens of the reply
are predicted in one pass, as MTP heads predict the next tokens of a text: place f of the reply has logits

    W_f h + U_f gelu(M h + b_f + sum_{j < f} A_j[token j])

The first term is the parallel prediction (block teacher forcing, Dedieu et al. 2025, arXiv 2502.01591). The second sees
the earlier tokens of the reply: without it they are drawn independently, which in a world of chance mixes replies that
never occur. What the turn earns and whether it ends the conversation are read from ``h`` and the reply together.

Members of the ensemble are one tensor's first axis, so that a step costs about what one member costs.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.turns import NOTHING, Turns


@dataclass(frozen=True)
class ReplySizes:
    """What the network has room for, in tokens; ``num_turns`` in turns."""

    vocab_size: int
    opening: int
    said: int
    reply: int
    num_turns: int
    num_reward_bins: int

    @property
    def end(self) -> int:
        """Return the class that stands for the end of a reply, behind those of the vocabulary."""
        return self.vocab_size


class MemberLinear(nn.Module):
    """A linear layer of each member."""

    def __init__(self, members: int, inputs: int, outputs: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs, generator=generator) * std)
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, inputs: Float[Tensor, "member row inputs"]) -> Float[Tensor, "member row outputs"]:
        """Return each member's outputs."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class TextEmbedding(nn.Module):
    """A short text as one vector of each member: the sum over its places of an embedding of (place, token)."""

    offsets: Tensor

    def __init__(self, members: int, places: int, vocab_size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.table = nn.Parameter(
            torch.randn(members, places * vocab_size, width, generator=generator) * 0.5 / math.sqrt(min(places, 4))
        )
        self.register_buffer("offsets", torch.arange(places) * vocab_size, persistent=False)

    def by_place(self, text: Int[Tensor, "row place"]) -> Float[Tensor, "member row place width"]:
        """Return the embedding of each token at its place; zero where there is none."""
        offsets = self.offsets[: text.shape[1]]
        found = self.table[:, torch.where(text == NOTHING, 0, text) + offsets]
        return found.masked_fill((text == NOTHING)[None, ..., None], 0.0)

    def forward(self, text: Int[Tensor, "row place"]) -> Float[Tensor, "member row width"]:
        """Return the vectors of texts."""
        return self.by_place(text).sum(dim=2)


class TurnBlock(nn.Module):
    """A pre-norm decoder layer over turns, with ALiBi in place of positions; or without attention to other turns."""

    slopes: Tensor

    def __init__(self, members: int, width: int, num_heads: int, history: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.history, self.num_heads = history, num_heads
        std = width**-0.5
        self.project = MemberLinear(members, width, 3 * width if history else width, std, generator)
        self.merge = MemberLinear(members, width, width, std, generator)
        self.up = MemberLinear(members, width, 4 * width, std, generator)
        self.down = MemberLinear(members, 4 * width, width, (4 * width) ** -0.5, generator)
        # The last head looks at all turns alike; the others ever more at the near ones (Press et al. 2022, 2108.12409).
        slopes = [4.0**-head for head in range(num_heads - 1)] + [0.0]
        self.register_buffer("slopes", torch.tensor(slopes), persistent=False)

    def forward(self, inputs: Float[Tensor, "member episode turn width"]) -> Float[Tensor, "member episode turn width"]:
        """Return the turns' vectors, each from itself and those before it."""
        shape = inputs.shape
        flat = inputs.flatten(1, 2)
        mixed = self.project(functional.layer_norm(flat, shape[-1:]))
        if self.history:
            mixed = self._attended(mixed.view(*shape[:3], -1)).flatten(1, 2)
        flat = flat + self.merge(mixed)
        flat = flat + self.down(functional.gelu(self.up(functional.layer_norm(flat, shape[-1:])), approximate="tanh"))
        return functional.layer_norm(flat, shape[-1:]).view(shape)

    def _attended(self, projected: Tensor) -> Tensor:
        members, episodes, turns, _ = projected.shape
        parts = projected.view(members * episodes, turns, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(turns, device=projected.device)
        distance = (place[:, None] - place[None]).to(projected.dtype)
        bias = -self.slopes[:, None, None] * distance
        bias = bias.masked_fill(distance < 0, float("-inf"))
        found = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=bias[None])
        return found.transpose(1, 2).reshape(members, episodes, turns, -1)


class ReplyNetwork(nn.Module):
    """From conversations to distributions over replies, rewards and ends, of every member.

    ``history`` says whether a turn sees those before it. ``blind`` leaves out what was said: a placebo.
    """

    def __init__(
        self,
        sizes: ReplySizes,
        config: ReplyModelConfig,
        history: bool,
        generator: torch.Generator,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.history, self.blind = sizes, history, blind
        self.autoregressive = config.autoregressive
        members, width, vocab_size = config.num_members, config.hidden_size, sizes.vocab_size

        def texts(places: int) -> TextEmbedding:
            return TextEmbedding(members, places, vocab_size, width, generator)

        def linear(inputs: int, outputs: int, std: float | None = None) -> MemberLinear:
            return MemberLinear(members, inputs, outputs, inputs**-0.5 if std is None else std, generator)

        self.opening, self.heard, self.said = texts(sizes.opening), texts(sizes.reply), texts(sizes.said)
        self.block = TurnBlock(members, width, config.num_heads, history, generator)
        self.parallel = linear(width, sizes.reply * (vocab_size + 1), 0.01)
        self.earlier, self.mix = texts(sizes.reply), linear(width, width)
        self.place = nn.Parameter(torch.zeros(members, 1, sizes.reply, width))
        self.corrected = nn.Parameter(torch.zeros(members, sizes.reply, width, vocab_size + 1))
        self.outcome_text, self.outcome_mix = texts(sizes.reply), linear(width, width)
        self.outcome_turn = nn.Parameter(torch.zeros(members, sizes.num_turns + 1, width))
        self.reward, self.end = linear(width, sizes.num_reward_bins, 0.01), linear(width, 2, 0.01)

    def turns(self, turns: Turns) -> Float[Tensor, "member episode turn width"]:
        """Return the vector of every turn, from which its reply is foretold; of turns that are not there, anything."""
        episodes, number, _ = turns.said.shape
        said = self.said(turns.said.flatten(0, 1)).unflatten(1, (episodes, number))
        opening = self.opening(turns.opening)[:, :, None]
        later = self.heard(turns.replies[:, :-1].flatten(0, 1)).unflatten(1, (episodes, number - 1))
        heard = torch.cat([opening, later], dim=2)
        vectors: Tensor = self.block(heard if self.blind else heard + said)
        return vectors

    def turn_vectors(self, turns: Turns, turn: Int[Tensor, " row"]) -> Float[Tensor, "member row width"]:
        """Return the vector of turn ``turn`` of each row, without computing those that it does not see."""
        rows = torch.arange(len(turns), device=turns.device)
        if self.history:
            return self.turns(turns.first(int(turn.max()) + 1))[:, rows, turn]
        earlier = self.heard(turns.replies[rows, (turn - 1).clamp_min(0)])
        heard = torch.where((turn == 0)[None, :, None], self.opening(turns.opening), earlier)
        said = 0.0 if self.blind else self.said(turns.said[rows, turn])
        vectors: Tensor = self.block((heard + said)[:, :, None])[:, :, 0]
        return vectors

    def reply_logits(
        self, vectors: Float[Tensor, "member row width"], replies: Int[Tensor, "row reply"]
    ) -> Float[Tensor, "member row reply vocab_and_end"]:
        """Return the logits of every place of the replies, given the tokens before it."""
        places = replies.shape[1]
        logits = self.parallel_logits(vectors, places)
        if not self.autoregressive:
            return logits
        tokens = self.earlier.by_place(replies)
        hidden = functional.gelu(
            self.mix(vectors)[:, :, None] + tokens.cumsum(dim=2) - tokens + self.place[:, :, :places]
        )
        return logits + torch.einsum("mrpw,mpwv->mrpv", hidden, self.corrected[:, :places])

    def parallel_logits(
        self, vectors: Float[Tensor, "member row width"], places: int
    ) -> Float[Tensor, "member row reply vocab_and_end"]:
        """Return the part of the logits that knows no token of the reply, of the first places."""
        size = places * (self.sizes.vocab_size + 1)
        logits = torch.baddbmm(self.parallel.bias[..., :size], vectors, self.parallel.weight[..., :size])
        return logits.unflatten(2, (places, -1))

    def correction(
        self, mixed: Float[Tensor, "member row width"], earlier: Int[Tensor, "row earlier"]
    ) -> Float[Tensor, "member row vocab_and_end"]:
        """Return what the earlier tokens of the reply add to the logits of the next place; ``mixed`` is ``mix``'s."""
        place = earlier.shape[1]
        hidden = functional.gelu(mixed + self.earlier(earlier) + self.place[:, :, place])
        return torch.bmm(hidden, self.corrected[:, place])

    def outcome_logits(
        self,
        vectors: Float[Tensor, "member row width"],
        replies: Int[Tensor, "row reply"],
        turn: Int[Tensor, " row"],
    ) -> tuple[Float[Tensor, "member row bins"], Float[Tensor, "member row 2"]]:
        """Return the logits of the reward, and of going on and ending, where this is the reply."""
        time = self.outcome_turn[:, turn.clamp_max(self.sizes.num_turns)]
        hidden = functional.gelu(self.outcome_mix(vectors) + self.outcome_text(replies) + time)
        return self.reward(hidden), self.end(hidden)


def reply_classes(replies: Int[Tensor, "row reply"], end: int) -> Int[Tensor, "row reply"]:
    """Return the class of each place: the token, ``end`` behind the last one, ``NOTHING`` from there on."""
    missing = replies == NOTHING
    missing_before = functional.pad(missing[:, :-1], (1, 0), value=False)
    return torch.where(missing & ~missing_before, end, replies)
