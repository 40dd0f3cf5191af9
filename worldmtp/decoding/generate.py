"""``generate``: prompts in, texts out, faster than one forward a token and with the same law.

A loop over a ``DecodingSession`` that knows when rows end. Rows end on their own, and are dropped at once.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldmtp.decoding.adaptive import LengthChooser, length_chooser
from worldmtp.decoding.drafts import Drafter
from worldmtp.decoding.evaluation_mode import evaluation_mode
from worldmtp.decoding.integers import as_integer
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.limits import check_cache, check_prompts
from worldmtp.decoding.lossy import LossyRule
from worldmtp.decoding.making import as_widths, make_drafter
from worldmtp.decoding.output import DecodingOutput
from worldmtp.decoding.policy import DecodingPolicy
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.session import DecodingSession, Emission
from worldmtp.decoding.stopping import StopRule, TokenIds, first_stop, make_stop_rule
from worldmtp.decoding.trunk import as_mtp_model


def generate(
    model: nn.Module,
    input_ids: Shaped[Tensor, "..."],
    attention_mask: Shaped[Tensor, "..."] | None = None,
    *,
    max_new_tokens: SupportsIndex,
    eos_token_id: TokenIds | None = None,
    pad_token_id: SupportsIndex = 0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    logits_processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
    stop_sequences: Iterable[Iterable[SupportsIndex]] = (),
    draft: str | nn.Module | Drafter = "mtp",
    num_draft: SupportsIndex | str | LengthChooser | None = None,
    tree: Sequence[SupportsIndex] | None = None,
    generator: torch.Generator | None = None,
    three_phase: bool = False,
    lossy: LossyRule | None = None,
    max_cache_bytes: int | None = None,
) -> DecodingOutput:
    """Continue prompts, padded on either side; without ``lossy`` the law is that of the trunk alone, whatever drafts.

    Args:
        model: an MTPModel, or any causal LM of Hugging Face's with attention layers, in PEFT's wrapper or without.
        input_ids: prompts.
        attention_mask: of the prompts' shape, 1 at real tokens and 0 at padding; None says that there is no padding.
        max_new_tokens: at most, for each row.
        eos_token_id: what ends a text, itself included; one or several.
        pad_token_id: what stands after the end.
        do_sample: draw from the processed distribution, else take its most likely token.
        temperature: the logits are divided by it; this and the next two matter where tokens are drawn.
        top_k: only so many tokens are drawn from; 0 is all.
        top_p: only the most likely tokens of this much probability are.
        repetition_penalty: of tokens already in the prompt or the text (Keskar et al. 2019); 1 is none.
        logits_processors: Hugging Face's; each sees a row's real tokens, drafts included.
        stop_sequences: tokens that end a text, kept in it.
        draft: ``"mtp"`` the model's heads, ``"lookup"`` repetitions of the text, ``"none"``, a smaller causal LM with
            the same vocabulary, or a ``Drafter``.
        num_draft: tokens a draft, K - 1 of the heads' by default; not beside ``tree``, which has a number for each.
            ``"auto"``, or an ``AdaptiveLength`` of one's own, finds out what is fastest, none included (equal seeds
            then need not give equal samples).
        tree: candidates at each depth, for a draft that branches; of the heads only.
        generator: what is drawn from; needed with ``do_sample``.
        three_phase: predict and verify in forwards of their own, for comparison.
        lossy: ``LossyTypical()`` or ``LossyTopN(n, delta)``, which accept what is likely enough; not the trunk's law.
        max_cache_bytes: a bound on the trunk's cache; None is the memory that is free.

    Raises:
        ValueError: prompts that do not fit, are all padding or are ambiguous; a mask of another shape, or with other
            values than 0 and 1; ends that no text can have; a draft that cannot be made, or whose length cannot be
            chosen; sampling without a generator; lossy acceptance in three phases.
        MemoryError: the cache does not fit; the message does the sum.
        TypeError: a trunk that is no causal LM, or whose layers' state cannot be taken back; an option's kind.
    """
    _check_modes(do_sample, generator, three_phase, lossy)
    whole = as_mtp_model(model)
    stops = make_stop_rule(eos_token_id, stop_sequences, max_new_tokens, whole.num_tokens)
    pad_token_id = as_integer("pad_token_id", pad_token_id, "the id that stands after the end")
    input_ids, mask = check_prompts(whole, input_ids, attention_mask, pad_token_id, stops.max_new_tokens)
    sampling = SamplingConfig(do_sample, temperature, top_k, top_p, repetition_penalty, tuple(logits_processors))
    chooser, length = length_chooser(num_draft, tree is None and not three_phase, draft)
    drafter = make_drafter(whole, draft, length, as_widths("tree", tree))
    runner = make_runner(whole)
    capacity = int(mask.sum(dim=1).max()) + stops.max_new_tokens
    check_cache(whole, len(input_ids), capacity + drafter.max_drafts, max_cache_bytes, runner.copied_bytes)
    policy = DecodingPolicy(sampling, generator)
    with evaluation_mode(whole):
        session = DecodingSession(whole, runner, drafter, policy, capacity, lossy)
        rows = _Rows(input_ids, stops, pad_token_id, drafter)
        rows.take(session, session.prefill(input_ids, mask), counts_as_round=False)
        while len(session.texts):
            if chooser is None:
                rows.take(session, session.advance_in_phases() if three_phase else session.advance())
            else:
                _timed_round(session, rows, chooser, drafter.max_drafts)
    return rows.output(session.num_trunk_forwards)


def _timed_round(session: DecodingSession, rows: "_Rows", chooser: LengthChooser, max_length: int) -> None:
    """A round of the length that is chosen, whose time is told; that accepted counts are read waits for the device."""
    num_rows = len(session.texts)
    length = chooser.choose(num_rows, max_length)
    begin = time.perf_counter()
    emission = session.advance(length)
    rows.take(session, emission)
    chooser.observe(num_rows, length, time.perf_counter() - begin, emission.num_accepted, emission.num_drafted)


class _Rows:
    """The texts as the caller will get them, from those a session still works on."""

    def __init__(self, input_ids: Tensor, stops: StopRule, pad_token_id: int, drafter: Drafter) -> None:
        max_drafts = drafter.max_drafts
        max_depth = getattr(drafter, "max_depth", max_drafts)
        num_rows, device = len(input_ids), input_ids.device
        self._prompts, self._stops, self._pad = input_ids, stops, pad_token_id
        self._new = torch.full((num_rows, stops.max_new_tokens + max_drafts + 1), pad_token_id, device=device)
        self._logprobs: Float[Tensor, "row new"] | None = None
        self._lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._alive = torch.arange(num_rows, device=device)
        self._rounds = np.zeros(num_rows, dtype=np.int64)
        self._drafted = np.zeros(max_depth, dtype=np.int64)
        self._accepted = np.zeros(max_depth, dtype=np.int64)

    def take(self, session: DecodingSession, emission: Emission, counts_as_round: bool = True) -> None:
        """Add a round's tokens to the rows alive, and drop those that ended."""
        alive, device = self._alive, self._new.device
        counts = torch.from_numpy(emission.counts).to(device)
        old = self._lengths[alive]
        # What stands after a row's last token is written too, to be overwritten or cut.
        places = alive[:, None], old[:, None] + torch.arange(emission.tokens.shape[1], device=device)
        self._new[places] = emission.tokens
        self._logprobs_of(emission)[places] = emission.logprobs
        lengths, is_done = first_stop(self._new[alive], old, old + counts, self._stops)
        self._lengths[alive] = lengths
        if counts_as_round:
            self._rounds[alive.cpu().numpy()] += 1
            index = np.arange(len(self._drafted))
            self._drafted += (index < emission.num_drafted[:, None]).sum(axis=0)
            self._accepted += (index < emission.num_accepted[:, None]).sum(axis=0)
        if bool(is_done.any()):
            sources, targets = session.drop(is_done.cpu().numpy())
            alive[torch.from_numpy(targets)] = alive[torch.from_numpy(sources)]
            self._alive = alive[: len(session.texts)]

    def output(self, num_trunk_forwards: int) -> DecodingOutput:
        """Everything, cut and padded."""
        width = int(self._lengths.max())
        is_real = torch.arange(width, device=self._new.device) < self._lengths[:, None]
        new = self._new[:, :width].masked_fill(~is_real, self._pad)
        assert self._logprobs is not None
        return DecodingOutput(
            sequences=torch.cat([self._prompts, new], dim=1),
            lengths=self._lengths,
            logprobs=self._logprobs[:, :width].masked_fill(~is_real, 0.0),
            num_trunk_forwards=num_trunk_forwards,
            num_rounds=self._rounds,
            drafted_per_depth=self._drafted,
            accepted_per_depth=self._accepted,
        )

    def _logprobs_of(self, emission: Emission) -> Tensor:
        if self._logprobs is None:
            self._logprobs = torch.zeros(self._new.shape, dtype=emission.logprobs.dtype, device=self._new.device)
        return self._logprobs


def _check_modes(
    do_sample: bool, generator: torch.Generator | None, three_phase: bool, lossy: LossyRule | None
) -> None:
    if do_sample and generator is None:
        raise ValueError("do_sample=True draws; pass generator=torch.Generator().manual_seed(0).")
    if lossy is not None and three_phase:
        raise ValueError(
            f"three_phase=True is the paper's lossless blockwise decoding, and lossy={lossy} is not; leave one out."
        )
