"""Prompts as token ids, and token ids as text again."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_MOST_LISTED = 128
"""Characters of a vocabulary that an error message lists."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], num_before: int = 0
) -> tuple[Int[Tensor, "row length"], Int[Tensor, "row length"]]:
    """Return ids, padded on the left, and their mask; special tokens are added where the tokenizer adds them, as a BOS.

    Messages count prompts from the first one of ``num_before`` earlier ones on.

    Raises:
        ValueError: no prompt, an empty one, or one with characters that the tokenizer does not know.
    """
    if not texts:
        raise ValueError('no prompt was given; pass prompts as arguments, or on standard input, a line each: "hello=".')
    for number, text in enumerate(texts, start=num_before + 1):
        if not text:
            raise ValueError(f"prompt {number} is empty; the model needs at least one token to go on.")
        unknown = _unknown_characters(tokenizer, text)
        if unknown:
            raise ValueError(
                f"prompt {number}, {text!r}, has {', '.join(map(repr, unknown))}, unknown to the model's tokenizer"
                f"{_known_characters(tokenizer)}; write it without."
            )
    rows = [tokenizer.encode(text) for text in texts]
    length = max(map(len, rows))
    ids, mask = torch.zeros((len(rows), length), dtype=torch.long), torch.zeros((len(rows), length), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, length - len(row) :] = torch.tensor(row)
        mask[place, length - len(row) :] = 1
    return ids, mask


def decode_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens, without special ones."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _unknown_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    if _is_of_characters(tokenizer):
        return sorted(set(text) - set(tokenizer.get_vocab()))
    unknown = tokenizer.unk_token_id
    # Tokenizers that know every byte often name the token that ends or fills texts as their unknown one as well.
    if unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return []
    if unknown not in tokenizer.encode(text, add_special_tokens=False):
        return []
    alone = [one for one in sorted(set(text)) if unknown in tokenizer.encode(one, add_special_tokens=False)]
    return alone or [text]


def _known_characters(tokenizer: PreTrainedTokenizerBase) -> str:
    if not _is_of_characters(tokenizer) or len(tokenizer) > _MOST_LISTED:
        return ""
    return f", which knows {''.join(sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)))!r}"


def _is_of_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether it is a CharTokenizer's, which has no token for what it does not know."""
    ordinary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    return tokenizer.unk_token_id is None and all(len(token) == 1 for token in ordinary)
