"""``parallel_beam``: a search for likely texts that goes several tokens deep in each forward of the trunk.

Beam search extends every beam by a token a forward. Here the heads say what may follow several tokens ahead, and all
the texts that their candidates make, of all beams, are scored by the trunk in one forward over a tree:

    candidates of a beam    widths[0] tokens of the trunk's own distribution, after each widths[1] of depth 2's, ..
    scores                  the trunk's log-probability of all of a text's new tokens; the heads' play no part
    survivors               the ``num_beams`` best of a prompt; texts that ended, cut at their end, compete with theirs

The features of that forward give the survivors' next distribution and the roots of the heads (predicting and scoring
merged, as in Stern et al. 2018, arXiv 1811.03115, sec. 4), so N tokens with K widths take 1 + ceil((N - 1) / K)
forwards. With a single width of at least ``num_beams`` it is beam search.

**It is no lossless decoder**: what it returns is in general neither greedy nor a sample, and what the heads do not
propose is not found. It prefers short texts, as any search by log-probability does.

Left out: length penalties, sampling, logits processors, diverse beams, and heads with attention (``beam_drafts``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from worldmtp.decoding.beam_drafts import check_beam_heads
from worldmtp.decoding.beam_selection import Beams, select_beams
from worldmtp.decoding.beam_session import BeamSession
from worldmtp.decoding.beam_tree import BeamTree
from worldmtp.decoding.evaluation_mode import evaluation_mode
from worldmtp.decoding.integers import as_integer
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.limits import check_cache, check_prompts
from worldmtp.decoding.making import as_widths
from worldmtp.decoding.stopping import StopRule, TokenIds, make_stop_rule
from worldmtp.decoding.trunk import as_mtp_model


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
        input_ids: prompts.
        attention_mask: of the prompts' shape, 1 at real tokens and 0 at padding, on either side; None says that there
            is no padding.
        widths: candidates at depths 1, 2, ..; depth 1 is the trunk's own next token.
        num_beams: texts that are kept of each prompt.
        max_new_tokens: at most, for each row.
        eos_token_id: what ends a text, itself included; one or several.
        pad_token_id: what stands after the end.
        max_cache_bytes: a bound on the trunk's cache, whose rows are prompts x beams, with slots for the prompt, the
            new tokens and the nodes of one beam's tree; None is the memory that is free.

    Raises:
        ValueError: prompts that do not fit, are all padding or are ambiguous; a mask of another shape, or with other
            values than 0 and 1; ends that no text can have; widths that the heads or the vocabulary
            have not, or that make too many nodes.
        MemoryError: the cache does not fit; the message does the sum.
        TypeError: heads with attention; a trunk that is no causal LM, or with layers whose state cannot be taken back;
            an option of another kind.
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
        beams, num_rounds = _search(session, input_ids, mask, num_beams, stops)
    lengths = beams.lengths[:, 0]
    new = beams.tokens[:, 0, : int(lengths.max())]
    is_real = torch.arange(new.shape[1], device=new.device) < lengths[:, None]
    return ParallelBeamOutput(
        sequences=torch.cat([input_ids, new.masked_fill(~is_real, pad_token_id)], dim=1),
        lengths=lengths,
        scores=beams.scores[:, 0],
        num_trunk_forwards=session.texts.num_forwards,
        num_rounds=num_rounds,
    )


def _search(
    session: BeamSession, input_ids: Tensor, mask: Tensor, num_beams: int, stops: StopRule
) -> tuple[Beams, int]:
    """Rounds until no text goes on; live texts are of one length."""
    session.prefill(input_ids, mask)
    beams = Beams.start(len(input_ids), num_beams, stops.max_new_tokens, input_ids.device)
    num_new = num_rounds = 0
    while bool(beams.is_live.any()):
        depth = min(session.max_depth, stops.max_new_tokens - num_new)
        num_new, num_rounds = num_new + depth, num_rounds + 1
        is_last = num_new == stops.max_new_tokens
        selection = select_beams(beams, session.score(depth, is_last), stops.eos_token_ids, is_last)
        beams = selection.beams
        if len(selection.rows):
            session.follow(selection.rows.cpu().numpy(), selection.nodes)
    return beams, num_rounds
