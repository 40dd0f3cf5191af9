"""Drafts by a smaller causal LM with the same vocabulary (Leviathan et al. 2023, arXiv 2211.17192).

It keeps a cache of its own over the same texts. The first forward of a round reads the last two tokens, one of them
again: whether the last draft was accepted, and so read, differs by row, and two tokens cost what one does.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.decoding.drafts import Draft, write_drafts
from worldmtp.decoding.evaluation_mode import evaluation_mode
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.policy import DecodingPolicy
from worldmtp.decoding.text import CachedTexts, IntArray
from worldmtp.decoding.trunk import as_mtp_model
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures

DEFAULT_DRAFTS = 4


class ModelDraft:
    """A ``Drafter``; its tokens are drawn where the policy's are. The drafting model is left in the mode it was in.

    Raises:
        ValueError: another vocabulary, or no token to draft.
    """

    def __init__(self, drafting: PreTrainedModel, model: MTPModel, num_drafts: int | None = None) -> None:
        self._drafting = as_mtp_model(drafting)
        config = self._drafting.trunk.config.get_text_config()
        ours, theirs = model.num_tokens, self._drafting.num_tokens
        if ours != theirs:
            raise ValueError(
                f"the drafting model has {theirs} tokens and the model {ours}; drafts need one vocabulary for both."
            )
        self.max_drafts = DEFAULT_DRAFTS if num_drafts is None else num_drafts
        if self.max_drafts < 1:
            raise ValueError(f"num_draft={self.max_drafts} must be at least 1; for none use draft='none'.")
        self._num_layers = config.num_hidden_layers
        self._max_position = getattr(config, "max_position_embeddings", None)
        self._own: CachedTexts | None = None
        self._num_skipped = 0
        """Rounds without drafts since the last with some; each added one token to every row."""

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Read the prompts."""
        runner = make_runner(self._drafting)
        runner.begin(texts.capacity)
        own = CachedTexts(runner, self._num_layers, texts.capacity, texts.device, self._max_position)
        own.num_cached = np.zeros(len(texts), dtype=np.int64)
        with evaluation_mode(self._drafting):
            own.forward(texts.ids[:, : int(texts.num_cached.max())])
        self._own, self._num_skipped = own, 0

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """A forward of the small model for each token."""
        own = self._own
        assert own is not None
        if num_drafts == 0:
            self._num_skipped += 1
            return Draft(texts.ids.new_zeros((len(texts), 0)), texts.ids.new_zeros(len(texts)))
        own.num_cached = texts.num_cached - 1 - self._num_skipped
        index = torch.from_numpy(own.num_cached).to(texts.device)[:, None]
        pending = texts.ids.gather(1, index + torch.arange(2 + self._num_skipped, device=texts.device))
        self._num_skipped = 0
        tokens, distributions = list[Tensor](), list[Tensor]()
        for ahead in range(min(num_drafts, self.max_drafts)):
            with evaluation_mode(self._drafting):
                hidden = own.forward(pending).post_norm[:, -1:]
            own.accept(np.full(len(texts), pending.shape[1]))
            processed = policy.processed(self._drafting.logits_of(hidden), texts, num_before=ahead)
            distributions.append(processed.log_softmax(dim=-1))
            pending = policy.choose(processed, distributions[-1])
            tokens.append(pending)
            write_drafts(texts, pending, num_before=ahead)
        return Draft(
            tokens=torch.cat(tokens, dim=1),
            num_drafts=torch.full((len(texts),), len(tokens), device=texts.device),
            log_q=torch.cat(distributions, dim=1) if policy.draws else None,
        )

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Its own cache holds what it needs."""

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """The cache's rows move; the texts are the session's."""
        assert self._own is not None
        if len(sources):
            rows = [torch.from_numpy(part).to(self._own.device) for part in (sources, targets)]
            self._own.cache.move_rows(rows[0], rows[1])
