"""What the trunk would do: its next-token distribution after every processor, at pending places of a batch of texts.

Drafts and their verification read the same distributions over the same contexts, drafts so far included; the output
law is that of the trunk under these and no other.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding.acceptance import Tree
from worldmtp.decoding.sampling import SamplingConfig, processed_logits
from worldmtp.decoding.text import CachedTexts
from worldmtp.model.categorical import draw


class DecodingPolicy:
    """Processed logits, and choices of them: draws, or without a generator the most likely tokens.

    Without one but with ``do_sample``, log-probabilities are of the distribution that would be drawn from.
    """

    def __init__(self, sampling: SamplingConfig, generator: torch.Generator | None) -> None:
        self.sampling = sampling
        self.generator = generator if sampling.do_sample else None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.generator is not None

    def processed(
        self, logits: Float[Tensor, "row place vocab"], texts: CachedTexts, num_before: int = 0
    ) -> Float[Tensor, "row place vocab"]:
        """Logits whose place j follows each row's newest token and ``num_before + j`` drafts."""
        num_rows, num_places, vocab_size = logits.shape
        if not self.sampling.reads_context:
            return processed_logits(logits, self.sampling)
        lengths = torch.from_numpy(texts.num_cached + 1 + num_before).to(logits.device)
        lengths = lengths[:, None] + torch.arange(num_places, device=logits.device)
        contexts = texts.ids[:, : int(lengths.max())].repeat_interleave(num_places, dim=0)
        flat = processed_logits(logits.flatten(0, 1), self.sampling, contexts, lengths.flatten())
        return flat.view(num_rows, num_places, vocab_size)

    def log_probs(self, processed: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place vocab"]:
        """Of processed logits.

        Raises:
            FloatingPointError: they are not finite, or all cut away.
        """
        found = processed.log_softmax(dim=-1)
        if bool(found[..., 0].isnan().any()):  # one NaN makes all of its place's
            raise FloatingPointError(
                "the policy's logits are not finite; its weights have overflowed, or a processor forbids every token."
            )
        return found

    def choose(
        self, processed: Float[Tensor, "*place vocab"], log_probs: Float[Tensor, "*place vocab"]
    ) -> Int[Tensor, "*place"]:
        """Draws, or the most likely tokens: of the logits, as log-probabilities round, and may make a tie of two."""
        if not self.draws:
            return processed.argmax(dim=-1)
        return draw(log_probs.flatten(0, -2), self.generator).view(log_probs.shape[:-1])

    def processed_tree(
        self,
        logits: Float[Tensor, "row node vocab"],
        texts: CachedTexts,
        tree: Tree,
        tokens: Int[Tensor, "row drafted"],
    ) -> Float[Tensor, "row node vocab"]:
        """Return what follows each node of a tree of drafted ``tokens``, the root first: contexts are paths here."""
        if not self.sampling.reads_context:
            return self.processed(logits, texts)
        depths = tree.depths.to(logits.device)
        first = torch.from_numpy(texts.num_cached + 1).to(logits.device)
        width = int(first.max()) + int(depths.max())
        contexts = texts.ids[:, None, :width].repeat(1, len(depths), 1)
        for node in range(1, len(depths)):
            place = (first + depths[node] - 1)[:, None]
            for below in torch.nonzero(tree.ancestors[:, node])[:, 0].tolist():
                contexts[:, below].scatter_(1, place, tokens[:, node - 1, None])
        lengths = (first[:, None] + depths).flatten()
        flat = processed_logits(logits.flatten(0, 1), self.sampling, contexts.flatten(0, 1), lengths)
        return flat.view_as(logits)
