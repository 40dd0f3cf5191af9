"""The policy that decoding follows: logits after penalties, processors, temperature and cuts, in that order.

The order and the arithmetic are those of Hugging Face's ``generate``, so that both give the same distributions. Places
are flat here: one for each context, whatever row it belongs to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
        """Whether what is done depends on the tokens so far."""
        return self.repetition_penalty != 1 or bool(self.processors)


def processed_logits(
    logits: Float[Tensor, "*place vocab"],
    config: SamplingConfig,
    contexts: Int[Tensor, "*place length"] | None = None,
    lengths: Int[Tensor, "*place"] | None = None,
) -> Float[Tensor, "*place vocab"]:
    """Logits of the policy, -inf where it never goes; in float32 at least, as Hugging Face computes them.

    ``contexts[i, : lengths[i]]`` are the tokens so far; they are needed where ``config.reads_context``, and places then
    stand in one dimension.

    Raises:
        ValueError: they are needed and are not there.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
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
    """Of tokens seen, positive logits are divided by the penalty and negative ones multiplied (Keskar et al. 2019)."""
    if penalty == 1:
        return logits
    real = torch.arange(contexts.shape[1], device=contexts.device) < lengths[:, None]
    # Padding counts as a repetition of the context's first token, so nothing is seen that is not there.
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen.scatter_(1, torch.where(real, contexts, contexts[:, :1]), torch.ones_like(contexts, dtype=torch.bool))
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _apply(processor: Processor, logits: Tensor, contexts: Tensor, lengths: Tensor) -> Tensor:
    """Call a processor with contexts of one length at a time: it is to see no padding."""
    processed = logits.clone()
    for length in lengths.unique().tolist():
        places = torch.nonzero(lengths == length)[:, 0]
        processed[places] = processor(contexts[places, :length], logits[places])
    return processed


def _cut_tail(logits: Tensor, top_p: float) -> Tensor:
    """Drop the least likely tokens that have 1 - top_p together at most; the most likely always stays."""
    ascending, order = logits.sort(descending=False)
    drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    drop[..., -1] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
