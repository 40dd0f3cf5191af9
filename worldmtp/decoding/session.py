"""A decoding session: a batch of texts that grow by whole rounds, each one forward of the trunk over drafts.

    propose    the drafter guesses what follows each row's newest token
    verify     the trunk reads the newest token and the guesses, in one forward
    accept     guesses that are the trunk's own choices become text, and its next choice the newest token

What comes out follows the trunk's processed distribution exactly, whatever the drafts (Leviathan et al. 2023, arXiv
2211.17192); they decide only how many tokens a forward yields. Verifying one draft is predicting for the next, the
merged form of blockwise parallel decoding (Stern et al. 2018, arXiv 1811.03115, sec. 4): m tokens in m / k + 1
forwards. ``advance_in_phases`` is the paper's three-phase form, 2 m / k, for comparison. A rule of
``worldmtp.decoding.lossy``, where one is given, accepts more, and what comes out follows the trunk no longer.

A session knows no end of text: ``worldmtp.decoding.generate`` and acting policies decide when a row is done. It records
no gradients.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from worldmtp.decoding.acceptance import accept_deterministic, accept_greedy, accept_sampled, accept_tree
from worldmtp.decoding.drafts import Draft, Drafter, write_drafts
from worldmtp.decoding.lossy import LossyRule, accept_lossy, accept_lossy_tree
from worldmtp.decoding.policy import DecodingPolicy
from worldmtp.decoding.text import CachedTexts, IntArray
from worldmtp.decoding.trunk import TrunkRunner
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class Emission:
    """The tokens of a round: the first ``counts[r]`` of row r, and the policy at each.

    ``num_accepted`` of them were drafts, of ``num_drafted``.
    """

    tokens: Int[Tensor, "row emitted"]
    log_policy: Float[Tensor, "row emitted vocab"]
    counts: IntArray
    num_accepted: IntArray
    num_drafted: IntArray

    @property
    def logprobs(self) -> Float[Tensor, "row emitted"]:
        """Of the tokens."""
        return self.log_policy.gather(2, self.tokens[..., None])[..., 0]

    @property
    def entropies(self) -> Float[Tensor, "row emitted"]:
        """Of the policy, in nats."""
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
        config = model.trunk.config.get_text_config()
        self._model = model
        self._drafter = drafter
        self._policy = policy
        self._lossy = lossy
        self.capacity = capacity
        """Tokens of a text, its prompt included; drafts have slots beside."""
        self.texts = CachedTexts(
            runner,
            config.num_hidden_layers,
            capacity + drafter.max_drafts,
            model.device,
            getattr(config, "max_position_embeddings", None),
        )

    @property
    def num_trunk_forwards(self) -> int:
        """So far, the prompts' included."""
        return self.texts.num_forwards

    @torch.no_grad()
    def prefill(self, input_ids: Int[Tensor, "row length"], attention_mask: Shaped[Tensor, "..."]) -> Emission:
        """Start over from prompts, wherever their padding is; each row's first token.

        Raises:
            ValueError: a mask of another shape or kind than (row, length) and bool, or a row that is all padding or
                longer than the session's capacity.
        """
        features = self.texts.prefill(input_ids, attention_mask)
        self._drafter.start(self.texts, features)
        nothing = np.zeros(len(self.texts), dtype=np.int64)
        return self._choose_next(_last(features, self.texts.num_cached), nothing, nothing)

    @torch.no_grad()
    def advance(self, num_drafts: int | None = None) -> Emission:
        """One round with at most so many drafts: each row gets one token more than the drafts accepted."""
        texts = self.texts
        draft, features, logits = self._propose_and_verify(num_drafts)
        path = None
        if draft.tree is not None:
            processed = self._policy.processed_tree(logits, texts, draft.tree, draft.tokens)
            log_probs = self._policy.log_probs(processed)
            nodes = torch.cat([self._newest(), draft.tokens], dim=1)
            targets = self._policy.choose(processed, log_probs)
            if self._lossy is None:
                verdict = accept_tree(draft.tree, nodes, targets)
            else:
                parents = torch.tensor(draft.tree.parents, device=nodes.device).clamp_min(0)
                verdict = accept_lossy_tree(draft.tree, self._lossy.accepts(nodes, log_probs[:, parents]), targets)
            accepted, next_tokens, path = verdict.num_accepted, verdict.next_tokens, verdict.path
            log_probs = _along(log_probs, path)
            drafts = nodes.gather(1, path)[:, 1:]
            write_drafts(texts, drafts)  # of all that branched, these became text
        else:
            processed = self._policy.processed(logits, texts)
            log_probs = self._policy.log_probs(processed)
            drafts, generator = draft.tokens, self._policy.generator
            if self._lossy is not None:
                targets = self._policy.choose(processed, log_probs)
                chain = accept_lossy(self._lossy.accepts(drafts, processed[:, :-1]), draft.num_drafts, targets)
            elif not self._policy.draws:
                chain = accept_greedy(drafts, draft.num_drafts, processed)
            elif draft.log_q is None:
                chain = accept_deterministic(drafts, draft.num_drafts, log_probs, generator)
            else:
                chain = accept_sampled(drafts, draft.num_drafts, draft.log_q, log_probs, generator)
            accepted, next_tokens = chain.num_accepted, chain.next_tokens
        num_accepted = accepted.cpu().numpy()
        self._accept(features, path, num_accepted + 1)
        tokens = torch.cat([drafts, next_tokens[:, None]], dim=1)
        tokens = tokens.scatter(1, accepted[:, None], next_tokens[:, None])
        self._append(next_tokens)
        return Emission(
            tokens=tokens,
            log_policy=log_probs,
            counts=num_accepted + 1,
            num_accepted=num_accepted,
            num_drafted=draft.num_drafts.cpu().numpy(),
        )

    @torch.no_grad()
    def advance_in_phases(self, num_drafts: int | None = None) -> Emission:
        """Stern et al.'s three phases: predict in one forward, verify in another, accept; greedy chains only.

        The trunk's correction is not used, as in the paper, so m tokens take 2 m / k forwards where all are accepted.

        Raises:
            ValueError: sampling, which would be biased by the correction that is thrown away.
        """
        if self._policy.draws:
            raise ValueError(
                "three-phase decoding throws away the trunk's corrections, which biases draws; use greedy."
            )
        features = self.texts.forward(self._newest())
        self._accept(features, None, np.ones(len(self.texts), dtype=np.int64))
        nothing = np.zeros(len(self.texts), dtype=np.int64)
        first = self._choose_next(features, nothing, nothing)
        draft, features, logits = self._propose_and_verify(num_drafts)
        if draft.tree is not None:
            raise ValueError("three-phase decoding is of chains; draft without tree widths.")
        processed = self._policy.processed(logits, self.texts)
        verdict = accept_greedy(draft.tokens, draft.num_drafts, processed)
        num_accepted = verdict.num_accepted.cpu().numpy()
        tokens = torch.cat([first.tokens, draft.tokens], dim=1)
        later = self._policy.log_probs(processed)[:, :-1]
        # The last accepted token is the newest: it is read again with the next prediction, as in the paper.
        self._accept(features, None, num_accepted)
        return Emission(
            tokens=tokens,
            log_policy=torch.cat([first.log_policy, later], dim=1),
            counts=num_accepted + 1,
            num_accepted=num_accepted,
            num_drafted=draft.num_drafts.cpu().numpy(),
        )

    def drop(self, is_done: Bool[np.ndarray, " row"]) -> tuple[IntArray, IntArray]:
        """Forget rows; see ``CachedTexts.drop``."""
        sources, targets = self.texts.drop(is_done)
        self._drafter.move_rows(sources, targets, len(self.texts))
        return sources, targets

    def _propose_and_verify(self, num_drafts: int | None) -> tuple[Draft, TrunkFeatures, Tensor]:
        texts, limit = self.texts, self._drafter.max_drafts
        draft = self._drafter.propose(texts, self._policy, limit if num_drafts is None else min(num_drafts, limit))
        tokens = torch.cat([self._newest(), draft.tokens], dim=1)
        if draft.tree is None:
            write_drafts(texts, draft.tokens)
            features = texts.forward(tokens)
        else:
            features = texts.forward(tokens, draft.tree.depths.to(texts.device), draft.tree.ancestors.to(texts.device))
        return draft, features, self._model.logits_of(features.post_norm)

    def _newest(self) -> Int[Tensor, "row 1"]:
        index = torch.from_numpy(self.texts.num_cached).to(self.texts.device)
        return self.texts.ids.gather(1, index[:, None])

    def _accept(self, features: TrunkFeatures, path: Tensor | None, num_new: IntArray) -> None:
        if path is None:
            self.texts.accept(num_new)
        else:
            self.texts.accept_path(path, num_new)
            features = features.map(lambda hidden: _along(hidden, path))
        self._drafter.observe(self.texts, features, num_new)

    def _choose_next(self, features: TrunkFeatures, num_accepted: IntArray, num_drafted: IntArray) -> Emission:
        """Each row's next token from the features of its last one."""
        logits = self._model.logits_of(features.post_norm)
        processed = self._policy.processed(logits, self.texts, num_before=-1)
        log_probs = self._policy.log_probs(processed)
        tokens = self._policy.choose(processed, log_probs)
        self._append(tokens[:, 0])
        return Emission(
            tokens=tokens,
            log_policy=log_probs,
            counts=num_accepted + 1,
            num_accepted=num_accepted,
            num_drafted=num_drafted,
        )

    def _append(self, tokens: Int[Tensor, " row"]) -> None:
        """The newest tokens: text that the trunk has not read."""
        index = torch.from_numpy(self.texts.num_cached).to(self.texts.device)
        self.texts.ids.scatter_(1, index[:, None], tokens[:, None])


def _last(features: TrunkFeatures, lengths: IntArray) -> TrunkFeatures:
    def pick(hidden: Tensor) -> Tensor:
        rows = torch.arange(len(lengths), device=hidden.device)
        return hidden[rows, torch.from_numpy(lengths - 1).to(hidden.device)][:, None]

    return features.map(pick)


def _along(states: Float[Tensor, "row node width"], path: Int[Tensor, "row step"]) -> Float[Tensor, "row step width"]:
    return states.gather(1, path[..., None].expand(-1, -1, states.shape[2]))
