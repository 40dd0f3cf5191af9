"""A decoding session: a batch of texts that grow by whole rounds, each one forward of the trunk over drafts.

    propose    the drafter guesses what follows each row's newest token
    verify     the trunk reads the newest token and the guesses, in one forward
    accept     guesses that are the trunk's own choices become text, and its next choice the newest token

What comes out follows the trunk's processed distribution exactly, whatever the drafts (Leviathan et al. 2023, arXiv
2211.17192); they decide only how many tokens a forward yields. Verifying one draft is predicting for the next, the
merged form of blockwise parallel decoding (Stern et al. 2018, arXiv 1811.03115, sec. 4): m tokens in m / k + 1
forwards. ``advance_in_phases`` is the paper's three-phase form, 2 m / k, for comparison. With a lossy rule of
``worldmtp.decoding.acceptance`` more is accepted, and what comes out no longer follows the trunk.

``extend`` is for conversations, in which somebody else writes too: the trunk reads what was written, and nothing again.

A session knows no end of text: ``worldmtp.decoding.generate`` and acting policies decide when a row is done. It records
no gradients.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from worldmtp.decoding.acceptance import (
    Draft,
    LossyRule,
    Verdict,
    accept_equal,
    accept_lossy_tree,
    accept_run,
    accept_sampled,
    accept_tree,
)
from worldmtp.decoding.cache import CachedTexts, IntArray, TrunkRunner
from worldmtp.decoding.drafts import Drafter
from worldmtp.decoding.sampling import DecodingPolicy
from worldmtp.decoding.trunk import features_at
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class Round:
    """What one round did: the draft, what became of it, and the tokens that every row got.

    Attributes:
        draft: what was proposed, with the drafter's distributions; empty for the prompts' forward.
        tokens: the accepted drafts and the trunk's own token; the first ``counts[r]`` belong to row r.
        log_policy: the trunk's policy at each of them.
        num_accepted: how many of a row's tokens were drafts.
        num_drafted: how many places ahead the row had drafts for.
    """

    draft: Draft
    tokens: Int[Tensor, "row emitted"]
    log_policy: Float[Tensor, "row emitted vocab"]
    num_accepted: IntArray
    num_drafted: IntArray

    @property
    def counts(self) -> IntArray:
        """Return how many tokens each row got."""
        return self.num_accepted + 1

    @property
    def logprobs(self) -> Float[Tensor, "row emitted"]:
        """Return the log-probabilities of the tokens."""
        return self.log_policy.gather(2, self.tokens[..., None])[..., 0]

    @property
    def entropies(self) -> Float[Tensor, "row emitted"]:
        """Return the policy's entropies, in nats."""
        return entropy_per_token(self.log_policy)


class DecodingSession:
    """Rows are those of the prompts, less those dropped; ``texts`` holds them."""

    def __init__(
        self,
        model: MTPModel,
        runner: TrunkRunner,
        drafter: Drafter,
        policy: DecodingPolicy,
        capacity: int,
        lossy: LossyRule | None = None,
    ) -> None:
        self._model = model
        self._drafter = drafter
        self._policy = policy
        self._lossy = lossy
        self.capacity = capacity
        """Tokens of a text, its prompt included; drafts have slots beside them."""
        self.texts = CachedTexts(runner, model.trunk.config, capacity + drafter.max_drafts, model.device)

    @property
    def max_drafts(self) -> int:
        """Return how many slots a draft may take; 0 where nothing is drafted."""
        return self._drafter.max_drafts

    @property
    def num_trunk_forwards(self) -> int:
        """Return the number of forwards so far, the prompts' included."""
        return self.texts.num_forwards

    @torch.no_grad()
    def prefill(self, input_ids: Int[Tensor, "row length"], attention_mask: Shaped[Tensor, "..."]) -> Round:
        """Start over from prompts, wherever their padding is; return each row's first token.

        Raises:
            ValueError: a mask of another shape or dtype than (row, length) and bool, or a row that is all padding or
                longer than the session's capacity.
        """
        features = self.texts.prefill(input_ids, attention_mask)
        self._drafter.start(self.texts, features)
        last = torch.from_numpy(self.texts.num_cached - 1).to(self.texts.device)
        rows = torch.arange(len(last), device=last.device)
        return self._choose_next(features_at(features, rows, last), rows)

    @torch.no_grad()
    def extend(
        self,
        tokens: Int[Tensor, "row written"],
        counts: IntArray,
        lengths: IntArray | None = None,
        takes_part: Bool[np.ndarray, " row"] | None = None,
    ) -> Round:
        """Append what somebody else wrote behind the newest tokens, and choose what follows it, in one forward.

        Row r gets the first ``counts[r]`` of its ``tokens``. ``lengths[r]`` says behind how many tokens of its text,
        its newest one included, where that is not all: what was decided beyond is thrown away, cache and drafts with
        it. Rows that do not take part, by default those that get nothing, stay as they are. One that gets nothing and
        takes part has a round without drafts.

        Returns:
            The next token of each row that takes part, in the session's order.

        Raises:
            ValueError: no row takes part, tokens or a cut for a row that does not, counts or lengths out of range, or a
                text without room for what is written and for one token more.
        """
        texts = self.texts
        whole = texts.num_cached + 1
        lengths = whole if lengths is None else lengths
        takes_part = counts > 0 if takes_part is None else takes_part
        self._check_extension(tokens, counts, lengths, takes_part)
        texts.cut(lengths)
        texts.write_ragged(tokens, counts)
        num_new = np.where(takes_part, counts + 1, 0)
        is_real = torch.from_numpy(np.arange(tokens.shape[1]) < counts[:, None]).to(tokens.device)
        pending = torch.cat([texts.newest, tokens.masked_fill(~is_real, 0)], dim=1)[:, : int(num_new.max())]
        features = texts.forward(pending, counts=num_new)
        self._accept(features, None, num_new)
        last = torch.from_numpy(np.maximum(num_new - 1, 0)).to(texts.device)
        of_last = features_at(features, torch.arange(len(last), device=last.device), last)
        return self._choose_next(of_last, torch.from_numpy(np.flatnonzero(takes_part)).to(texts.device))

    @torch.no_grad()
    def advance(self, num_drafts: int | None = None) -> Round:
        """Run one round with at most so many drafts: each row gets one token more than the drafts accepted."""
        texts = self.texts
        draft, pending, features, logits = self._propose_and_verify(num_drafts)
        if draft.tree is None:
            processed = self._policy.processed(logits, texts)
        else:
            processed = self._policy.processed_tree(logits, texts, draft.tree, draft.tokens)
        log_probs = self._policy.log_probs(processed)
        verdict = self._verdict(draft, pending, processed, log_probs)
        drafts, accepted, next_tokens = draft.tokens, verdict.num_accepted, verdict.next_tokens
        if verdict.path is not None:
            log_probs = _along(log_probs, verdict.path)
            drafts = pending.gather(1, verdict.path)[:, 1:]
            texts.write(drafts)  # of all that branched, these became text
        num_accepted = accepted.cpu().numpy()
        self._accept(features, verdict.path, num_accepted + 1)
        tokens = torch.cat([drafts, next_tokens[:, None]], dim=1)
        tokens = tokens.scatter(1, accepted[:, None], next_tokens[:, None])
        texts.write(next_tokens[:, None], after=0)
        return Round(draft, tokens, log_probs, num_accepted, draft.num_drafts.cpu().numpy())

    @torch.no_grad()
    def advance_in_phases(self) -> Round:
        """Run Stern et al.'s three phases: predict in one forward, verify in another, accept; greedy chains only.

        The trunk's correction is not used, as in the paper, so m tokens take 2 m / k forwards where all are accepted.

        Raises:
            ValueError: sampling, which throwing the correction away would bias; or drafts that branch.
        """
        if self._policy.draws:
            raise ValueError(
                "three-phase decoding throws away the trunk's corrections, which biases draws; use greedy."
            )
        features = self.texts.forward(self.texts.newest)
        self._accept(features, None, np.ones(len(self.texts), dtype=np.int64))
        first = self._choose_next(features, torch.arange(len(self.texts), device=self.texts.device))
        draft, _, features, logits = self._propose_and_verify(None)
        if draft.tree is not None:
            raise ValueError("three-phase decoding is of chains; draft without tree widths.")
        processed = self._policy.processed(logits, self.texts)
        verdict = accept_equal(draft.tokens, draft.num_drafts, processed.argmax(dim=-1))
        num_accepted = verdict.num_accepted.cpu().numpy()
        later = self._policy.log_probs(processed)[:, :-1]
        # The last accepted token is the newest: it is read again with the next prediction, as in the paper.
        self._accept(features, None, num_accepted)
        return Round(
            draft=draft,
            tokens=torch.cat([first.tokens, draft.tokens], dim=1),
            log_policy=torch.cat([first.log_policy, later], dim=1),
            num_accepted=num_accepted,
            num_drafted=draft.num_drafts.cpu().numpy(),
        )

    def drop(self, is_done: Bool[np.ndarray, " row"]) -> tuple[IntArray, IntArray]:
        """Forget rows; see ``CachedTexts.drop``."""
        sources, targets = self.texts.drop(is_done)
        self._drafter.move_rows(sources, targets, len(self.texts))
        return sources, targets

    def _propose_and_verify(self, num_drafts: int | None) -> tuple[Draft, Tensor, TrunkFeatures, Tensor]:
        """Return a draft, the newest tokens with it, and the trunk's features and logits of those."""
        texts, limit = self.texts, self._drafter.max_drafts
        draft = self._drafter.propose(texts, self._policy, limit if num_drafts is None else min(num_drafts, limit))
        pending = torch.cat([texts.newest, draft.tokens], dim=1)
        if draft.tree is None:
            texts.write(draft.tokens)
            features = texts.forward(pending)
        else:
            features = texts.forward(pending, draft.tree.depths.to(texts.device), draft.tree.ancestors.to(texts.device))
        return draft, pending, features, self._model.logits_of(features.post_norm)

    def _verdict(
        self,
        draft: Draft,
        pending: Int[Tensor, "row place"],
        processed: Float[Tensor, "row place vocab"],
        log_probs: Float[Tensor, "row place vocab"],
    ) -> Verdict:
        """Decide which drafts become text, by the rule for how they were made; see ``acceptance``."""
        policy, lossy = self._policy, self._lossy
        if draft.tree is not None:
            targets = policy.choose(processed, log_probs)
            if lossy is None:
                return accept_tree(draft.tree, pending, targets)
            parents = torch.tensor(draft.tree.parents, device=pending.device).clamp_min(0)
            return accept_lossy_tree(draft.tree, lossy.accepts(pending, log_probs[:, parents]), targets)
        if lossy is not None:
            targets = policy.choose(processed, log_probs)
            return accept_run(lossy.accepts(draft.tokens, processed[:, :-1]), draft.num_drafts, targets)
        if draft.log_q is None or not policy.draws:
            return accept_equal(draft.tokens, draft.num_drafts, policy.choose(processed, log_probs))
        return accept_sampled(draft.tokens, draft.num_drafts, draft.log_q, log_probs, policy.generator)

    def _accept(self, features: TrunkFeatures, path: Tensor | None, num_new: IntArray) -> None:
        if path is None:
            self.texts.accept(num_new)
        else:
            self.texts.accept_path(path, num_new)
            features = features.map(lambda hidden: _along(hidden, path))
        self._drafter.observe(self.texts, features, num_new)

    def _choose_next(self, features: TrunkFeatures, rows: Int[Tensor, " chosen"]) -> Round:
        """Choose and write the next token of some rows from the features of each row's last one."""
        logits = self._model.logits_of(features.post_norm)
        processed = self._policy.processed(logits, self.texts, num_before=-1)[rows]
        log_probs = self._policy.log_probs(processed)
        tokens = self._policy.choose(processed, log_probs)
        newest = self.texts.newest
        newest[rows] = tokens
        self.texts.write(newest, after=0)
        nothing = np.zeros(len(tokens), dtype=np.int64)
        return Round(Draft.empty(tokens), tokens, log_probs, nothing, nothing)

    def _check_extension(
        self,
        tokens: Int[Tensor, "row written"],
        counts: IntArray,
        lengths: IntArray,
        takes_part: IntArray,
    ) -> None:
        whole, num_rows = self.texts.num_cached + 1, len(self.texts)
        for name, values in (("tokens", tokens), ("counts", counts), ("lengths", lengths), ("takes_part", takes_part)):
            if len(values) != num_rows:
                raise ValueError(
                    f"{name} has {len(values)} rows and the session {num_rows}; say it of each of its rows."
                )
        if not takes_part.any():
            raise ValueError("no row takes part in this extension; leave it out.")
        outside = np.flatnonzero((counts < 0) | (counts > tokens.shape[1]) | (lengths < 1) | (lengths > whole))
        if len(outside):
            raise ValueError(
                f"rows {outside.tolist()} are given {counts[outside].tolist()} of {tokens.shape[1]} tokens behind "
                f"{lengths[outside].tolist()} of {whole[outside].tolist()}; expected 0 to all of the former, and 1 to "
                "all of the latter."
            )
        changed = np.flatnonzero(~takes_part & ((counts > 0) | (lengths < whole)))
        if len(changed):
            raise ValueError(f"rows {changed.tolist()} are written to or cut and take no part; let them take part.")
        needed = np.where(takes_part, lengths + counts + 1, 0)
        if (needed > self.capacity).any():
            raise ValueError(
                f"a text of {needed.max()} tokens, one to be chosen included, exceeds the session's capacity of "
                f"{self.capacity}; make a session with more."
            )


def _along(states: Float[Tensor, "row node width"], path: Int[Tensor, "row step"]) -> Float[Tensor, "row step width"]:
    return states.gather(1, path[..., None].expand(-1, -1, states.shape[2]))
