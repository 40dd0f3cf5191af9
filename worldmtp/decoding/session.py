"""A cached decoding session: one prefill, then one token a step for every row.

It owns the KV cache; environments never see one. Right- and left-padded prompts are served alike: padded slots stay in
the cache, masked, and positions count real tokens only, so the logits are those of the unpadded row.

Left out here: drafts and their verification, stop sequences, compaction of finished rows.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.model import MTPModel
from worldmtp.targets import position_ids_from_attention_mask


class DecodingSession:
    """Decodes a batch token by token with the trunk of an MTPModel; gradients are never recorded."""

    def __init__(self, model: MTPModel) -> None:
        self._model = model
        self._cache = DynamicCache()
        self._attention_mask = torch.zeros((0, 0), dtype=torch.bool)
        self._next_position = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def prefill(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch vocab"]:
        """Start over from prompts; the logits of each row's next token.

        Raises:
            ValueError: a row has no token at all.
        """
        empty = torch.nonzero(~attention_mask.any(dim=1))[:, 0].tolist()
        if empty:
            raise ValueError(f"rows {empty} of the prompts are all padding; every row needs at least one token.")
        position_ids = position_ids_from_attention_mask(attention_mask)
        self._cache = DynamicCache()
        hidden = self._model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._attention_mask = attention_mask
        self._next_position = attention_mask.sum(dim=1)
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(attention_mask, index, -1).amax(dim=1)
        return self._model.logits_of(hidden[torch.arange(len(last), device=last.device), last])

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Append one token to every row; the logits of the next.

        Raises:
            RuntimeError: there is no prompt yet.
        """
        if not len(self._attention_mask):
            raise RuntimeError("the session is empty; call prefill before step.")
        seen = torch.ones_like(self._attention_mask[:, :1])
        self._attention_mask = torch.cat([self._attention_mask, seen], dim=1)
        hidden = self._model.base_model(
            input_ids=tokens[:, None],
            attention_mask=self._attention_mask.long(),
            position_ids=self._next_position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._next_position = self._next_position + 1
        return self._model.logits_of(hidden[:, -1])
