"""``generate``: prompts in, texts out, faster than one forward a token and with the same law.

A loop over a ``DecodingSession`` that knows when rows end. Rows end on their own, and are dropped at once.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from worldmtp.decoding.acceptance import LossyRule
from worldmtp.decoding.adaptive import LengthChooser, length_chooser
from worldmtp.decoding.drafts import Drafter, make_drafter
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.limits import (
    StopRule,
    TokenIds,
    as_integer,
    as_widths,
    check_cache,
    check_prompts,
    first_stop,
    make_stop_rule,
)
from worldmtp.decoding.sampling import DecodingPolicy, SamplingConfig
from worldmtp.decoding.session import DecodingSession, Round
from worldmtp.decoding.trunk import as_mtp_model, evaluation_mode

StopWhen = Callable[[int, Sequence[int]], bool]
"""(prompt, its new tokens) -> whether the text has ended; once true, it stays true with further tokens."""
OnRound = Callable[[Round, Int[Tensor, " row"], Int[Tensor, " row"]], None]
"""(round, the prompt of each of its rows, how many of a row's tokens belong to its text) -> None."""


@dataclass(frozen=True)
class DecodingOutput:
    """Prompts and what follows them, and what it took.

    Attributes:
        sequences: the prompts as they were given, then the new tokens, then padding.
        lengths: new tokens of each row, the one that ended it included.
        logprobs: of the new tokens under the policy that was asked for; zero past the end.
        num_trunk_forwards: over the whole batch, the prompts' included.
        num_rounds: rounds that each row took part in, without the prompts' forward.
        drafted_per_depth: how often, over rows and rounds, a first, second, .. token ahead was drafted; the candidates
            of a tree for one token count once.
        accepted_per_depth: and how often that one and all before it were accepted.
    """

    sequences: Int[Tensor, "row time"]
    lengths: Int[Tensor, " row"]
    logprobs: Float[Tensor, "row new"]
    num_trunk_forwards: int
    num_rounds: Int[np.ndarray, " row"]
    drafted_per_depth: Int[np.ndarray, " ahead"]
    accepted_per_depth: Int[np.ndarray, " ahead"]

    @property
    def tokens_per_forward(self) -> float:
        """Return the new tokens of a row per round, on average; what the prompts' forward gave is not counted."""
        rounds = int(self.num_rounds.sum())
        return float((self.lengths - 1).sum()) / rounds if rounds else float("nan")


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
    stop_when: StopWhen | None = None,
    draft: str | nn.Module | Drafter = "mtp",
    num_draft: SupportsIndex | str | LengthChooser | None = None,
    tree: Sequence[SupportsIndex] | None = None,
    generator: torch.Generator | None = None,
    three_phase: bool = False,
    lossy: LossyRule | None = None,
    max_cache_bytes: int | None = None,
    on_round: OnRound | None = None,
) -> DecodingOutput:
    """Continue prompts, padded on either side; without ``lossy`` the law is that of the trunk alone, whatever drafts.

    Args:
        model: an MTPModel, or any Hugging Face causal LM with attention layers, in PEFT's wrapper or without.
        input_ids: prompts.
        attention_mask: of the prompts' shape, 1 at tokens and 0 at padding; None: there is no padding.
        max_new_tokens: at most, for each row.
        eos_token_id: one id or several that end a text; they are kept in it.
        pad_token_id: what stands after the end.
        do_sample: draw from the processed distribution instead of taking its most likely token.
        temperature: what logits are divided by; this and the next two matter where tokens are drawn.
        top_k: draw from so many most likely tokens; 0 is all.
        top_p: draw from the most likely tokens of this much probability.
        repetition_penalty: for tokens already in the prompt or the text (Keskar et al. 2019); 1 is none.
        logits_processors: Hugging Face's; each sees a row's real tokens, drafts included.
        stop_sequences: sequences of tokens that end a text; they are kept in it.
        stop_when: called after each round with a prompt's number and new tokens; true ends the text there.
        draft: ``"mtp"`` the heads, ``"lookup"`` repetitions of the text, ``"none"``, a causal LM, or a ``Drafter``.
        num_draft: tokens of a draft, K - 1 by default for heads; ``"auto"`` or an ``AdaptiveLength`` finds the fastest.
        tree: candidates at each depth, for heads' drafts that branch; leaves ``num_draft`` out.
        generator: the source of draws; required with ``do_sample``.
        three_phase: predict and verify in separate forwards, for comparison.
        lossy: ``LossyTypical()`` or ``LossyTopN(n, delta)``, which accept likely drafts; not the trunk's law.
        max_cache_bytes: a bound on the trunk's cache; None is the free memory.
        on_round: called with every round, the prompts' forward included.

    Raises:
        ValueError: prompts, masks, ends or options that do not fit the model or one another; the message says which.
        MemoryError: the cache does not fit; the message does the sum.
        TypeError: not a causal LM, layers whose state cannot be taken back, or an option of another kind.
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
    with evaluation_mode(whole):
        session = DecodingSession(whole, runner, drafter, DecodingPolicy(sampling, generator), capacity, lossy)
        rows = _Rows(input_ids, stops, pad_token_id, drafter, stop_when, on_round)
        rows.take(session, session.prefill(input_ids, mask), counts_as_round=False)
        while len(session.texts):
            if chooser is None:
                rows.take(session, session.advance_in_phases() if three_phase else session.advance())
            else:
                _timed_round(session, rows, chooser, drafter.max_drafts)
    return rows.output(session.num_trunk_forwards)


def _check_modes(
    do_sample: bool, generator: torch.Generator | None, three_phase: bool, lossy: LossyRule | None
) -> None:
    if do_sample and generator is None:
        raise ValueError("do_sample=True draws; pass generator=torch.Generator().manual_seed(0).")
    if lossy is not None and three_phase:
        raise ValueError(
            f"three_phase=True is the paper's lossless blockwise decoding, and lossy={lossy} is not; leave one out."
        )


def _timed_round(session: DecodingSession, rows: "_Rows", chooser: LengthChooser, max_length: int) -> None:
    """Run a round of the chosen length and report its time; reading accepted counts waits for the device."""
    num_rows = len(session.texts)
    length = chooser.choose(num_rows, max_length)
    begin = time.perf_counter()
    one = session.advance(length)
    rows.take(session, one)
    chooser.observe(num_rows, length, time.perf_counter() - begin, one.num_accepted, one.num_drafted)


class _Rows:
    """The texts as the caller will get them, and which of them a session still works on."""

    def __init__(
        self,
        input_ids: Tensor,
        stops: StopRule,
        pad_token_id: int,
        drafter: Drafter,
        stop_when: StopWhen | None,
        on_round: OnRound | None,
    ) -> None:
        max_drafts = drafter.max_drafts
        max_depth = getattr(drafter, "max_depth", max_drafts)
        num_rows, device = len(input_ids), input_ids.device
        self._prompts, self._stops, self._pad = input_ids, stops, pad_token_id
        self._stop_when, self._on_round = stop_when, on_round
        self._new = torch.full((num_rows, stops.max_new_tokens + max_drafts + 1), pad_token_id, device=device)
        self._logprobs: Float[Tensor, "row new"] | None = None
        self._lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._alive = torch.arange(num_rows, device=device)
        self._rounds = np.zeros(num_rows, dtype=np.int64)
        self._drafted = np.zeros(max_depth, dtype=np.int64)
        self._accepted = np.zeros(max_depth, dtype=np.int64)

    def take(self, session: DecodingSession, one: Round, counts_as_round: bool = True) -> None:
        """Add a round's tokens to the rows alive, and drop those that ended."""
        alive, device = self._alive, self._new.device
        counts = torch.from_numpy(one.counts).to(device)
        old = self._lengths[alive]
        # What stands after a row's last token is written too, to be overwritten or cut.
        places = alive[:, None], old[:, None] + torch.arange(one.tokens.shape[1], device=device)
        self._new[places] = one.tokens
        if self._logprobs is None:
            self._logprobs = torch.zeros(self._new.shape, dtype=one.log_policy.dtype, device=device)
        self._logprobs[places] = one.logprobs
        lengths, is_done = first_stop(self._new[alive], old, old + counts, self._stops)
        if self._stop_when is not None:
            lengths, is_done = self._ends_for_caller(self._stop_when, old, lengths, is_done)
        self._lengths[alive] = lengths
        if self._on_round is not None:
            self._on_round(one, alive.clone(), lengths - old)
        if counts_as_round:
            self._rounds[alive.cpu().numpy()] += 1
            index = np.arange(len(self._drafted))
            self._drafted += (index < one.num_drafted[:, None]).sum(axis=0)
            self._accepted += (index < one.num_accepted[:, None]).sum(axis=0)
        if bool(is_done.any()):
            sources, targets = session.drop(is_done.cpu().numpy())
            alive[torch.from_numpy(targets)] = alive[torch.from_numpy(sources)]
            self._alive = alive[: len(session.texts)]

    def _ends_for_caller(
        self, stop_when: StopWhen, old: Int[Tensor, " row"], lengths: Int[Tensor, " row"], is_done: Bool[Tensor, " row"]
    ) -> tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]:
        """Cut each row at the first of its latest tokens after which the caller says that the text has ended."""
        cut = lengths.tolist()
        for index, (row, first) in enumerate(zip(self._alive.tolist(), old.tolist(), strict=True)):
            tokens = self._new[row, : cut[index]].tolist()
            if stop_when(row, tokens):
                ends = range(first + 1, len(tokens))
                cut[index] = next((end for end in ends if stop_when(row, tokens[:end])), len(tokens))
                is_done[index] = True
        return torch.tensor(cut, device=lengths.device), is_done

    def output(self, num_trunk_forwards: int) -> DecodingOutput:
        """Return everything, cut and padded."""
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
