"""``parallel_beam``: a search for likely texts that goes several tokens deep in each forward of the trunk.

Beam search extends every beam by a token a forward. Here the heads say what may follow several tokens ahead, and all
the texts that their candidates make, of all beams, are scored by the trunk in one forward over a tree:

    candidates of a beam    widths[0] tokens of the trunk's own distribution, after each widths[1] of depth 2's, ..
    scores                  the trunk's log-probability of all of a text's new tokens; the heads' play no part
    survivors               the ``num_beams`` best of a prompt; texts that ended, cut at their end, compete with theirs

The features of that forward give the survivors' next distribution and the roots of the heads (merged, as in Stern et
al. 2018, arXiv 1811.03115, sec. 4), so N tokens with K widths take 1 + ceil((N - 1) / K) forwards. With a single width
of at least ``num_beams`` it is beam search. **It is not lossless**: the text is in general neither greedy nor a sample,
and what the heads do not propose is not found. It prefers short texts, as any search by log-probability does.
Left out: length penalties, sampling, logits processors, stop sequences, diverse beams, attending heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from worldmtp.decoding.acceptance import Tree
from worldmtp.decoding.cache import CachedTexts, IntArray, TrunkRunner
from worldmtp.decoding.head_drafts import check_beam_heads
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.limits import TokenIds, as_integer, as_widths, check_cache, check_prompts, make_stop_rule
from worldmtp.decoding.sampling import DecodingPolicy, SamplingConfig
from worldmtp.decoding.trunk import as_mtp_model, evaluation_mode, features_at
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures

MAX_NODES = 4096
"""Nodes of a beam's tree, at most: masks and scores of so many tokens are made at once."""


@dataclass(frozen=True)
class ParallelBeamOutput:
    """The best text found for each prompt.

    Attributes:
        sequences: the prompts as they were given, then the new tokens, then padding.
        lengths: new tokens of each row, the one that ended it included.
        scores: total log-probability of a row's new tokens under the trunk.
        num_trunk_forwards: over the whole batch, the prompts' included.
        num_rounds: how often beams were selected.
    """

    sequences: Int[Tensor, "row time"]
    lengths: Int[Tensor, " row"]
    scores: Float[Tensor, " row"]
    num_trunk_forwards: int
    num_rounds: int


def parallel_beam(
    model: nn.Module,
    input_ids: Shaped[Tensor, "..."],
    attention_mask: Shaped[Tensor, "..."] | None = None,
    *,
    widths: Sequence[SupportsIndex],
    num_beams: SupportsIndex = 1,
    max_new_tokens: SupportsIndex,
    eos_token_id: TokenIds | None = None,
    pad_token_id: SupportsIndex = 0,
    max_cache_bytes: int | None = None,
) -> ParallelBeamOutput:
    """Search for each prompt's most likely continuation; see the module. Not lossless.

    Args:
        model: an MTPModel whose heads have no attention; with one width, any causal LM with attention layers.
        input_ids: prompts; they, the mask and what ends and follows a text are those of ``generate``.
        attention_mask: see ``generate``.
        widths: candidates at depths 1, 2, ..; depth 1 is the trunk's own next token.
        num_beams: texts that are kept of each prompt.
        max_new_tokens: at most, for each row.
        eos_token_id: see ``generate``.
        pad_token_id: see ``generate``.
        max_cache_bytes: a bound on the cache: prompts x beams rows of the prompt, the new tokens and a tree's nodes.

    Raises:
        ValueError: prompts, masks, ends or widths that the model does not have, or too many nodes.
        MemoryError: the cache does not fit; the message does the sum.
        TypeError: heads with attention, or as ``generate``.
    """
    num_beams = as_integer("num_beams", num_beams)
    if num_beams < 1:
        raise ValueError(f"num_beams={num_beams} must be at least 1.")
    whole = as_mtp_model(model)
    stops = make_stop_rule(eos_token_id, (), max_new_tokens, whole.num_tokens)
    tree = BeamTree(as_widths("widths", widths) or ())
    check_beam_heads(whole, tree.widths)
    pad_token_id = as_integer("pad_token_id", pad_token_id, "the id that stands after the end")
    input_ids, mask = check_prompts(whole, input_ids, attention_mask, pad_token_id, stops.max_new_tokens)
    runner = make_runner(whole)
    capacity = int(mask.sum(dim=1).max()) + stops.max_new_tokens + tree.num_nodes
    check_cache(whole, len(input_ids) * num_beams, capacity, max_cache_bytes, runner.copied_bytes)
    with evaluation_mode(whole):
        session = BeamSession(whole, runner, tree.widths, capacity)
        session.prefill(input_ids, mask)
        beams = Beams.start(len(input_ids), num_beams, stops.max_new_tokens, input_ids.device)
        num_new = num_rounds = 0
        while bool(beams.is_live.any()):  # live texts are of one length
            depth = min(len(session.trees), stops.max_new_tokens - num_new)
            num_new, num_rounds = num_new + depth, num_rounds + 1
            is_last = num_new == stops.max_new_tokens
            selection = select_beams(beams, session.score(depth, is_last), stops.eos_token_ids, is_last)
            beams = selection.beams
            if len(selection.rows):
                session.follow(selection.rows.cpu().numpy(), selection.nodes)
    lengths = beams.lengths[:, 0]
    new = beams.tokens[:, 0, : int(lengths.max())]
    is_real = torch.arange(new.shape[1], device=new.device) < lengths[:, None]
    sequences = torch.cat([input_ids, new.masked_fill(~is_real, pad_token_id)], dim=1)
    return ParallelBeamOutput(sequences, lengths, beams.scores[:, 0], session.texts.num_forwards, num_rounds)


@dataclass(frozen=True)
class BeamTree:
    """Every text that the candidates of each depth make together; the text itself has no node.

    Level k has ``widths[k - 1]`` children of each node of level k - 1. Nodes are numbered level by level, the children
    of the first node first:

        text | a  b                 level 1, widths[0] = 2:   nodes 0, 1
             | aa ab  ba bb         level 2, widths[1] = 2:   nodes 2, 3 after a; 4, 5 after b

    Raises:
        ValueError: a width below 1, or more nodes than ``MAX_NODES``; the message does the sum.
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths} must be counts of at least 1, one for each depth.")
        if self.num_nodes > MAX_NODES:
            levels = " + ".join(str(size) for size in self.level_sizes)
            raise ValueError(
                f"widths={self.widths} make {levels} = {self.num_nodes} nodes for each beam, and one forward scores at "
                f"most {MAX_NODES}; lower a width or leave out a depth."
            )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Return the nodes of each level: products of the widths so far."""
        return tuple(accumulate(self.widths, mul))

    @property
    def num_nodes(self) -> int:
        """Return the nodes of all levels."""
        return sum(self.level_sizes)

    @property
    def num_inner(self) -> int:
        """Return the number of nodes with children; they come first."""
        return self.num_nodes - self.level_sizes[-1]

    @cached_property
    def depths(self) -> Int[Tensor, " node"]:
        """Return the level of each node, which is the length of its path."""
        return self._rooted.depths[1:]

    @cached_property
    def ancestors(self) -> Bool[Tensor, "node node"]:
        """Return whether node j is on the path to node i, i itself included, as ``[i, j]``."""
        return self._rooted.ancestors[1:, 1:]

    @cached_property
    def paths(self) -> Int[Tensor, "node depth"]:
        """Return the nodes on the way to each node; the last, itself, is repeated up to the deepest level."""
        num_nodes = self.num_nodes
        order = torch.where(self.ancestors, torch.arange(num_nodes), num_nodes).sort(dim=1).values
        return order[:, : len(self.widths)].minimum(torch.arange(num_nodes)[:, None])

    @cached_property
    def _rooted(self) -> Tree:
        """Return the tree with the text's last token as its root."""
        parents = [-1, *[0] * self.widths[0]]
        for level, size in zip(self.widths[1:], self.level_sizes, strict=False):
            first = len(parents) - size
            parents += [first + node for node in range(size) for _ in range(level)]
        return Tree(tuple(parents))


@dataclass(frozen=True)
class Candidates:
    """The paths of a round; ``log_probs`` are of all of a path's tokens, given the row's text."""

    tree: BeamTree
    tokens: Int[Tensor, "row node"]
    log_probs: Float[Tensor, "row node"]


class BeamSession:
    """Rows of texts; ``capacity`` counts their tokens and the nodes of a tree.

    A round is one forward: ``score`` lets the heads fill a tree after each text, and the trunk says how likely every
    path is; ``follow`` lets rows go on along some of their paths. The trunk's features of a path's last token, from the
    forward that scored it, are what the next tree grows from, so no token waits to be read.
    """

    def __init__(self, model: MTPModel, runner: TrunkRunner, widths: tuple[int, ...], capacity: int) -> None:
        self._model = model
        self._policy = DecodingPolicy(SamplingConfig(), None)
        self.trees = [BeamTree(widths[:depth]) for depth in range(1, len(widths) + 1)]
        self.texts = CachedTexts(runner, model.trunk.config, capacity, model.device)
        self._roots: TrunkFeatures | None = None
        self._read: tuple[Candidates, TrunkFeatures] | None = None

    @torch.no_grad()
    def prefill(self, input_ids: Int[Tensor, "row length"], attention_mask: Bool[Tensor, "row length"]) -> None:
        """Start over from prompts, wherever their padding is."""
        features = self.texts.prefill(input_ids, attention_mask)
        last = torch.from_numpy(self.texts.num_cached - 1).to(self.texts.device)
        self._roots = features_at(features, torch.arange(len(last), device=last.device), last)

    @torch.no_grad()
    def score(self, num_depths: int, is_last: bool = False) -> Candidates:
        """Score every path of up to ``num_depths`` tokens after every row's text.

        In the last round the paths' last tokens are scored but not read, as nothing follows them; where they are the
        only ones there is no forward at all.
        """
        assert self._roots is not None
        texts, tree = self.texts, self.trees[num_depths - 1]
        after = [self._log_probs(self._roots)]
        positions = torch.from_numpy(texts.num_cached - 1).to(texts.device)
        tokens = _draft_candidates(self._model, tree, self._roots, after[0][:, 0], positions)
        num_read = tree.num_inner if is_last else tree.num_nodes
        features = None
        if num_read:
            depths, ancestors = tree.depths[:num_read] - 1, tree.ancestors[:num_read, :num_read]
            features = texts.forward(tokens[:, :num_read], depths.to(texts.device), ancestors.to(texts.device))
            # What follows the deepest nodes is computed later, for those that are followed.
            inner = features.map(lambda hidden: hidden[:, : tree.num_inner])
            after += self._log_probs(inner).split(tree.level_sizes[:-1], dim=1) if tree.num_inner else ()
        found = Candidates(tree, tokens, path_log_probs(tree, tokens, after))
        self._read = None if is_last or features is None else (found, features)
        return found

    @torch.no_grad()
    def follow(self, rows: IntArray, nodes: Int[Tensor, " followed"]) -> None:
        """Make row i a copy of row ``rows[i]`` with the path to ``nodes[i]``, one of the deepest nodes, as text."""
        assert self._read is not None
        found, features = self._read
        texts, depth = self.texts, len(found.tree.widths)
        index = torch.from_numpy(rows).to(texts.device)
        path = found.tree.paths.to(texts.device)[nodes]
        texts.select(rows)
        texts.write(found.tokens[index].gather(1, path), after=0)
        texts.accept_path(path, np.full(len(rows), depth))
        self._roots, self._read = features_at(features, index, nodes), None

    def _log_probs(self, features: TrunkFeatures) -> Float[Tensor, "row place vocab"]:
        """Return the trunk's log-probabilities of the next token, in float32 at least."""
        logits = self._model.logits_of(features.post_norm)
        return self._policy.log_probs(self._policy.processed(logits, self.texts))


def _draft_candidates(
    model: MTPModel,
    tree: BeamTree,
    roots: TrunkFeatures,
    log_probs: Float[Tensor, "row vocab"],
    positions: Int[Tensor, " row"],
) -> Int[Tensor, "row node"]:
    """Return the tokens of all nodes, the most likely of siblings first.

    Level 1 is the trunk's ``log_probs`` of what follows each text. Action-conditional heads step on along the path to
    each node; parallel heads say the same after every path. ``roots`` are the features of each text's last token.
    """
    heads = model.heads
    levels = [log_probs.topk(tree.widths[0], dim=-1).indices]
    carry = heads.begin(roots)
    for ahead, width in enumerate(tree.widths[1:], start=1):
        depth = min(ahead + 1, model.config.depth)
        parents = levels[-1]
        if isinstance(heads, ActionConditionalHead):
            carry = carry.repeat_interleave(tree.widths[ahead - 1], dim=1)
            embeds = model.embed(parents)
            itself = torch.eye(parents.shape[1], dtype=torch.bool, device=parents.device)[None, None]
            carry = heads.forward_depth(depth, carry, embeds, itself, positions[:, None].expand_as(parents))
            latent = heads.read(depth, carry)
        else:
            itself = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=parents.device)
            latent = heads.forward_depth(depth, carry, itself, positions[:, None])
        children = model.logits_of(latent, depth).topk(width, dim=-1).indices
        levels.append(children.expand(-1, parents.shape[1], -1).flatten(1))
    return torch.cat(levels, dim=1)


def path_log_probs(
    tree: BeamTree, tokens: Int[Tensor, "row node"], log_probs: Sequence[Float[Tensor, "row _ vocab"]]
) -> Float[Tensor, "row node"]:
    """Return the log-probability of each node's path, a sum over its tokens in double precision.

    ``log_probs[k]`` are of what follows each node of level k; ``log_probs[0]`` of what follows the text.
    """
    total = torch.zeros((len(tokens), 1), dtype=torch.float64, device=tokens.device)
    found = list[Tensor]()
    for level, after in zip(tokens.split(tree.level_sizes, dim=1), log_probs, strict=True):
        children = level.view(len(level), after.shape[1], -1)
        total = (total[..., None] + after.gather(2, children).double()).flatten(1)
        found.append(total)
    return torch.cat(found, dim=1)


def candidate_nodes(
    tree: BeamTree, tokens: Int[Tensor, "row node"], eos_token_ids: Sequence[int]
) -> tuple[Bool[Tensor, "row node"], Bool[Tensor, "row node"]]:
    """Return which nodes' paths are candidates, and which of those have ended.

    A path ends at its first end-of-text token; one without any is a candidate where it is as deep as the tree.
    """
    ends = torch.tensor(list(eos_token_ids), dtype=tokens.dtype, device=tokens.device)
    is_over = torch.zeros((len(tokens), 1), dtype=torch.bool, device=tokens.device)
    candidates, ended = list[Tensor](), list[Tensor]()
    for depth, level in enumerate(tokens.split(tree.level_sizes, dim=1), start=1):
        was_over = is_over.repeat_interleave(tree.widths[depth - 1], dim=1)
        is_end = torch.isin(level, ends)
        ended.append(is_end & ~was_over)
        candidates.append(ended[-1] if depth < len(tree.widths) else ~was_over)
        is_over = was_over | is_end
    return torch.cat(candidates, dim=1), torch.cat(ended, dim=1)


@dataclass(frozen=True)
class Beams:
    """The texts of each prompt, the best first: new tokens, how many, their total log-probability, whether it goes on.

    A prompt has a fixed number of places; empty ones score -inf. Ended texts compete with their score and keep their
    place until a better one takes it. Live texts are of equal length, and in order the rows of a ``BeamSession``.
    """

    tokens: Int[Tensor, "prompt beam new"]
    lengths: Int[Tensor, "prompt beam"]
    scores: Float[Tensor, "prompt beam"]
    is_live: Bool[Tensor, "prompt beam"]

    @classmethod
    def start(cls, num_prompts: int, num_beams: int, max_new_tokens: int, device: torch.device) -> "Beams":
        """Return one live text a prompt, the prompt itself."""
        is_live = (torch.arange(num_beams, device=device) == 0).expand(num_prompts, -1)
        return cls(
            tokens=torch.zeros((num_prompts, num_beams, max_new_tokens), dtype=torch.long, device=device),
            lengths=torch.zeros((num_prompts, num_beams), dtype=torch.long, device=device),
            scores=torch.zeros(is_live.shape, dtype=torch.float64, device=device).masked_fill(~is_live, -torch.inf),
            is_live=is_live,
        )


@dataclass(frozen=True)
class Selection:
    """The beams of the next round, and for each live one the row and the node that it comes from."""

    beams: Beams
    rows: Int[Tensor, " live"]
    nodes: Int[Tensor, " live"]


def select_beams(beams: Beams, found: Candidates, eos_token_ids: Sequence[int], is_last: bool) -> Selection:
    """Select the best of the ended texts and of the live ones' candidates; ties go to the first beam and node.

    A prompt whose best text has ended is done: a live text only gets less likely.
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
    rows = (beams.is_live.flatten().cumsum(dim=0) - 1).view(num_prompts, num_beams).gather(1, parents).where(grows, 0)
    # The parents' texts, with the paths after them.
    path = found.tokens[rows[..., None], tree.paths.to(nodes.device)[nodes]]
    added = torch.where(grows, tree.depths.to(nodes.device)[nodes], 0)
    lengths = beams.lengths.gather(1, parents)
    tokens = beams.tokens.gather(1, parents[..., None].expand_as(beams.tokens))
    steps = torch.arange(path.shape[2], device=path.device)
    is_new = steps < added[..., None]
    columns = (lengths[..., None] + steps).clamp_max(tokens.shape[2] - 1)
    tokens.scatter_(2, columns, torch.where(is_new, path, tokens.gather(2, columns)))
    is_live = grows & ~(is_end[rows, nodes] | is_last)
    is_live = is_live & is_live[:, :1]
    return Selection(Beams(tokens, lengths + added, scores, is_live), rows[is_live], nodes[is_live])
