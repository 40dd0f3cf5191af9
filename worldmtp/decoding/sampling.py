"""The policy that decoding follows: the trunk's logits after penalty, processors, temperature and cuts, in that order.

The order and the arithmetic are those of Hugging Face's ``generate``, so that both give the same distributions. Drafts
and their verification read the same distributions over the same contexts, drafts so far included; the law of the output
is the trunk's under these and no other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding.acceptance import Tree
from worldmtp.decoding.cache import CachedTexts
from worldmtp.model.categorical import draw
from worldmtp.model.precision import full_precision

Processor = Callable[[Tensor, Tensor], Tensor]
"""A Hugging Face logits processor: (input_ids, scores) -> scores, both with a row a text."""


@dataclass(frozen=True)
class SamplingConfig:
    """What is done to the trunk's logits before a token is chosen; see ``worldmtp.decoding.generate`` for each field.

    Greedy choices ignore temperature, top_k and top_p, which leave the most likely token where it is.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    processors: tuple[Processor, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive; for the limit of 0 use do_sample=False."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0, which keeps all tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps all tokens.")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be positive; 1 is none.")

    @property
    def reads_context(self) -> bool:
        """Return whether the result depends on the tokens so far."""
        return self.repetition_penalty != 1 or bool(self.processors)


def processed_logits(
    logits: Float[Tensor, "*place vocab"],
    config: SamplingConfig,
    contexts: Int[Tensor, "*place length"] | None = None,
    lengths: Int[Tensor, "*place"] | None = None,
) -> Float[Tensor, "*place vocab"]:
    """Return the policy's logits, -inf at tokens it never takes; in float32 at least, as Hugging Face computes them.

    ``contexts[i, : lengths[i]]`` are the tokens before place i. They are required where ``config.reads_context``, and
    places then stand in one dimension, whatever row they belong to.

    Raises:
        ValueError: contexts are required and missing.
    """
    logits = full_precision(logits)
    if config.reads_context:
        if contexts is None or lengths is None:
            raise ValueError("a repetition penalty or a logits processor reads the tokens so far; pass contexts.")
        logits = _penalized(logits, contexts, lengths, config.repetition_penalty)
        for processor in config.processors:
            logits = _apply(processor, logits, contexts, lengths)
    if not config.do_sample:
        return logits
    if config.temperature != 1:
        logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p < 1:
        logits = _cut_tail(logits, config.top_p)
    return logits


def _penalized(logits: Tensor, contexts: Tensor, lengths: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of seen tokens by the penalty and multiply negative ones by it (Keskar et al. 2019)."""
    if penalty == 1:
        return logits
    real = torch.arange(contexts.shape[1], device=contexts.device) < lengths[:, None]
    # Padding counts as a repetition of the context's first token, so nothing is seen that is not there.
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen.scatter_(1, torch.where(real, contexts, contexts[:, :1]), torch.ones_like(contexts, dtype=torch.bool))
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _apply(processor: Processor, logits: Tensor, contexts: Tensor, lengths: Tensor) -> Tensor:
    """Call a processor with contexts of one length at a time, so that it sees no padding."""
    processed = logits.clone()
    for length in lengths.unique().tolist():
        places = torch.nonzero(lengths == length)[:, 0]
        processed[places] = processor(contexts[places, :length], logits[places])
    return processed


def _cut_tail(logits: Tensor, top_p: float) -> Tensor:
    """Drop the least likely tokens whose probabilities add up to at most 1 - top_p; always keep the most likely one."""
    ascending, order = logits.sort(descending=False)
    drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    drop[..., -1] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)


class DecodingPolicy:
    """Processed logits at the pending places of a batch of texts, and choices from them.

    Choices are draws, or the most likely tokens where there is no generator. Without a generator but with
    ``do_sample``, log-probabilities are those of the distribution that draws would come from.
    """

    def __init__(self, sampling: SamplingConfig, generator: torch.Generator | None) -> None:
        self.sampling = sampling
        self.generator = generator if sampling.do_sample else None

    @property
    def draws(self) -> bool:
        """Return whether tokens are drawn."""
        return self.generator is not None

    def processed(
        self, logits: Float[Tensor, "row place vocab"], texts: CachedTexts, num_before: int = 0
    ) -> Float[Tensor, "row place vocab"]:
        """Process logits whose place j follows each row's newest token and ``num_before + j`` drafts."""
        num_rows, num_places, vocab_size = logits.shape
        if not self.sampling.reads_context:
            return processed_logits(logits, self.sampling)
        lengths = torch.from_numpy(texts.num_cached + 1 + num_before).to(logits.device)
        lengths = lengths[:, None] + torch.arange(num_places, device=logits.device)
        contexts = texts.ids[:, : int(lengths.max())].repeat_interleave(num_places, dim=0)
        flat = processed_logits(logits.flatten(0, 1), self.sampling, contexts, lengths.flatten())
        return flat.view(num_rows, num_places, vocab_size)

    def log_probs(self, processed: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place vocab"]:
        """Return the log-probabilities of processed logits.

        Raises:
            FloatingPointError: logits are not finite, or all of them are cut away.
        """
        found = processed.log_softmax(dim=-1)
        if bool(found[..., 0].isnan().any()):  # one NaN makes the whole place NaN
            raise FloatingPointError(
                "the policy's logits are not finite; its weights have overflowed, or a processor forbids every token."
            )
        return found

    def choose(
        self, processed: Float[Tensor, "*place vocab"], log_probs: Float[Tensor, "*place vocab"]
    ) -> Int[Tensor, "*place"]:
        """Draw tokens, or take the most likely ones by the logits: log-probabilities round and may make ties."""
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
        """Process logits of what follows each node of a tree of ``tokens``, the root first, given the node's path."""
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
