"""Text to token ids and back: a protocol, characters, and any Hugging Face tokenizer.

A tokenizer is named by a JSON value (``spec()``, ``make_tokenizer``), so that it can stand in a gymnasium EnvSpec, in
a YAML file and in a checkpoint. transformers is imported only by those who ask for it.
"""

import difflib
import operator
import string
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, SupportsIndex, runtime_checkable

DEFAULT_ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase + " " + string.punctuation
"""Printable ASCII without control characters: 95 characters, a vocabulary of 97."""

PAD_TOKEN, EOS_TOKEN = "<pad>", "<eos>"
_KINDS = ("char", "transformers")


@runtime_checkable
class Tokenizer(Protocol):
    """What an environment asks of a tokenizer. ``encode`` adds no special tokens, ``decode`` leaves them out."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: ids are 0 .. vocab_size - 1."""
        ...

    @property
    def pad_id(self) -> int:
        """Id that fills rows on the right."""
        ...

    @property
    def eos_id(self) -> int:
        """Id that ends an episode."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text."""
        ...

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of the ids, special tokens left out."""
        ...

    def spec(self) -> dict[str, Any]:
        """JSON value from which ``make_tokenizer`` builds the same tokenizer."""
        ...


class CharTokenizer:
    """One id a character: pad is 0, eos is 1, then the alphabet in its order.

    Raises:
        ValueError: if the alphabet is empty or repeats a character.
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, alphabet: str = DEFAULT_ALPHABET) -> None:
        repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if not alphabet or repeated:
            raise ValueError(
                f"alphabet={alphabet!r} must name at least one character and each once; repeated: {repeated}."
            )
        self.alphabet = alphabet
        self._id_of = {character: index for index, character in enumerate(alphabet, start=2)}
        self._text_of = ["", "", *alphabet]

    @property
    def vocab_size(self) -> int:
        """Characters and the two special ids."""
        return len(self._text_of)

    def encode(self, text: str) -> list[int]:
        """Ids of the text.

        Raises:
            ValueError: if a character is outside the alphabet.
        """
        try:
            return [self._id_of[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"character {error.args[0]!r} of {text!r} is not in the alphabet {self.alphabet!r}; "
                "give the tokenizer an alphabet that has it."
            ) from None

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of the ids; pad and eos are nothing.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        indices = list(map(operator.index, ids))
        if indices and (min(indices) < 0 or max(indices) >= self.vocab_size):
            raise ValueError(f"ids {indices} leave the vocabulary 0..{self.vocab_size - 1}.")
        return "".join(map(self._text_of.__getitem__, indices))

    def spec(self) -> dict[str, Any]:
        """JSON value from which ``make_tokenizer`` builds the same tokenizer."""
        return {"kind": "char", "alphabet": self.alphabet}

    def to_transformers(self) -> Any:
        """A ``PreTrainedTokenizerFast`` with the same ids, for trainers and checkpoints of the field.

        Text that spells a special token is split into characters like any other, and an unknown character is an error.
        """
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        backend = Backend(models.WordLevel({PAD_TOKEN: self.pad_id, EOS_TOKEN: self.eos_id, **self._id_of}))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token=PAD_TOKEN,
            eos_token=EOS_TOKEN,
            padding_side="right",
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )


class TransformersTokenizer:
    """A Hugging Face tokenizer from a folder or hub name.

    Raises:
        ValueError: if it has no eos or no pad token.
    """

    def __init__(self, path: str) -> None:
        from transformers import AutoTokenizer

        self.path = str(path)
        self.backend = AutoTokenizer.from_pretrained(self.path)
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(self.backend, name) is None:
                raise ValueError(f"the tokenizer at {self.path!r} has no {name}; set one and save it again.")

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.backend)

    @property
    def pad_id(self) -> int:
        """Id that fills rows on the right."""
        return int(self.backend.pad_token_id)

    @property
    def eos_id(self) -> int:
        """Id that ends an episode."""
        return int(self.backend.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without special tokens."""
        return list(self.backend.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of the ids, special tokens left out."""
        return str(self.backend.decode([int(index) for index in ids], skip_special_tokens=True))

    def spec(self) -> dict[str, Any]:
        """JSON value from which ``make_tokenizer`` builds the same tokenizer."""
        return {"kind": "transformers", "path": self.path}


def make_tokenizer(spec: str | Mapping[str, Any] | Tokenizer) -> Tokenizer:
    """The tokenizer a spec names; a tokenizer is its own.

    ``"char"`` is printable ASCII, ``"char:<alphabet>"`` these characters, ``"transformers:<path>"`` a Hugging Face
    tokenizer. The mapping forms are what ``spec()`` returns.

    Raises:
        ValueError: if the kind is unknown or the mapping has keys that kind does not take.
    """
    if isinstance(spec, Tokenizer):
        return spec
    if isinstance(spec, str):
        kind, _, argument = spec.partition(":")
        options: dict[str, Any] = {"alphabet" if kind == "char" else "path": argument} if argument else {}
    else:
        options = dict(spec)
        kind = str(options.pop("kind", ""))
    if kind not in _KINDS:
        hint = difflib.get_close_matches(kind, _KINDS, n=1)
        raise ValueError(
            f"tokenizer kind {kind!r} is unknown; expected one of {_KINDS}"
            + (f", did you mean {hint[0]!r}?" if hint else '; a Hugging Face tokenizer is "transformers:<path>".')
        )
    try:
        return CharTokenizer(**options) if kind == "char" else TransformersTokenizer(**options)
    except TypeError as error:
        raise ValueError(f"tokenizer spec {spec!r} does not fit kind {kind!r}: {error}") from error
