"""The beams of a batch of prompts, and which candidates they become: the best by total log-probability.

A prompt has a fixed number of places, the best text first. A text in a place is live, and grows, or ended; ended texts
compete with their score and keep their place as long as no better one takes it. Empty places score -inf.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.decoding.beam_session import Candidates
from worldmtp.decoding.beam_tree import candidate_nodes


@dataclass(frozen=True)
class Beams:
    """New tokens of each text, how many, their total log-probability, and whether it goes on.

    Live texts are of equal length, and in order the rows of a ``BeamSession``.
    """

    tokens: Int[Tensor, "prompt beam new"]
    lengths: Int[Tensor, "prompt beam"]
    scores: Float[Tensor, "prompt beam"]
    is_live: Bool[Tensor, "prompt beam"]

    @classmethod
    def start(cls, num_prompts: int, num_beams: int, max_new_tokens: int, device: torch.device) -> "Beams":
        """One live text a prompt, the prompt itself."""
        is_live = torch.zeros((num_prompts, num_beams), dtype=torch.bool, device=device)
        is_live[:, 0] = True
        return cls(
            tokens=torch.zeros((num_prompts, num_beams, max_new_tokens), dtype=torch.long, device=device),
            lengths=torch.zeros((num_prompts, num_beams), dtype=torch.long, device=device),
            scores=torch.zeros(is_live.shape, dtype=torch.float64, device=device).masked_fill(~is_live, -torch.inf),
            is_live=is_live,
        )


@dataclass(frozen=True)
class Selection:
    """The beams of the next round, and of the live ones the row and the node that each comes from."""

    beams: Beams
    rows: Int[Tensor, " live"]
    nodes: Int[Tensor, " live"]


def select_beams(beams: Beams, found: Candidates, eos_token_ids: Sequence[int], is_last: bool) -> Selection:
    """The best of the ended texts and of the live ones' candidates; of equals the first, by beam and then by node.

    A prompt whose best text has ended is done: what a live one may still become is no more likely than it is now.
    """
    num_prompts, num_beams = beams.scores.shape
    tree, num_nodes = found.tree, found.tree.num_nodes
    is_candidate, is_end = candidate_nodes(tree, found.tokens, eos_token_ids)
    # Of each beam: itself, where it has ended, and then its candidates.
    pool = beams.scores.new_full((num_prompts, num_beams, 1 + num_nodes), -torch.inf)
    pool[..., 0] = beams.scores.masked_fill(beams.is_live, -torch.inf)
    scores = beams.scores[beams.is_live][:, None] + found.log_probs
    pool[..., 1:][beams.is_live] = scores.masked_fill(~is_candidate, -torch.inf)
    ranked = pool.flatten(1).sort(dim=1, descending=True, stable=True)
    scores, places = ranked.values[:, :num_beams], ranked.indices[:, :num_beams]
    parents, nodes = places // (1 + num_nodes), places % (1 + num_nodes) - 1
    grows = (nodes >= 0) & (scores > -torch.inf)
    nodes = nodes.clamp_min(0)
    rows = (beams.is_live.flatten().cumsum(dim=0) - 1).view(num_prompts, num_beams).gather(1, parents)
    rows = torch.where(grows, rows, 0)
    # The parents' texts, with the paths after them.
    path = found.tokens[rows[..., None], tree.paths.to(nodes.device)[nodes]]
    added = torch.where(grows, tree.depths.to(nodes.device)[nodes], 0)
    lengths = beams.lengths.gather(1, parents)
    tokens = beams.tokens.gather(1, parents[..., None].expand_as(beams.tokens))
    steps = torch.arange(path.shape[2], device=path.device)
    is_new = steps < added[..., None]
    columns = (lengths[..., None] + steps).clamp_max(tokens.shape[2] - 1)
    tokens.scatter_(2, columns, torch.where(is_new, path, tokens.gather(2, columns)))
    has_ended = is_end[rows, nodes] | is_last
    is_live = grows & ~has_ended
    is_live = is_live & is_live[:, :1]
    return Selection(Beams(tokens, lengths + added, scores, is_live), rows[is_live], nodes[is_live])
