"""Attention masks: who may attend to whom, and the additive form that every attention kernel takes."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def causal_mask(
    attention_mask: Bool[Tensor, "batch time"], document_ids: Int[Tensor, "batch time"] | None = None
) -> Bool[Tensor, "batch 1 time time"]:
    """True where query i may attend to key j: j <= i, j is a real token, and both are of one document.

    Everyone may attend to itself, padding too: what stands there is nobody's, but it is finite and a function of
    nothing but itself.
    """
    length = attention_mask.shape[1]
    square = torch.ones((length, length), dtype=torch.bool, device=attention_mask.device)
    allowed = square.tril() & attention_mask[:, None, None, :]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return allowed | torch.eye(length, dtype=torch.bool, device=attention_mask.device)


def additive_mask(allowed: Bool[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """Zero where allowed and the dtype's lowest finite value elsewhere.

    Finite, so that a query without any key averages all of them instead of becoming NaN: nobody reads it, but a NaN
    would reach the gradients of those who are read.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
