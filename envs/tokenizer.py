"""Text to token ids and back: a protocol, characters, and any Hugging Face tokenizer.

A tokenizer is named by a JSON value (``spec()``, ``make_tokenizer``), so that it can stand in a gymnasium EnvSpec, in
a YAML file and in a checkpoint. transformers is imported only by those who ask for it.
"""

import operator
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from worldmtp.choices import did_you_mean, env_settings

DEFAULT_ALPHABET = string.digits + string.ascii_lowercase + string.ascii_uppercase + " " + string.punctuation
"""Printable ASCII without control characters: 95 characters, a vocabulary of 97."""

PAD_TOKEN, EOS_TOKEN = "<pad>", "<eos>"
NO_TEXT = "\ufffd"
"""What a special token other than EOS is read as, Unicode's replacement character, which no answer holds."""

_KINDS = ("char", "transformers")
_MOST_ADDED = 200
"""Characters that an error message adds to an alphabet; texts with more are better written in tokens of several."""


@runtime_checkable
class Tokenizer(Protocol):
    """What an environment asks of a tokenizer: text is made of ordinary tokens, whatever it spells.

    A policy may write any token. If ``decode`` left special tokens out, an answer with padding inside would be as good
    as the answer; so it leaves out EOS and padding at the end, and any other is read as ``NO_TEXT``. ``written_text``
    reads tokens that somebody chose, among which padding at the end counts.
    """

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
        """Ids of the text, none of them special, even if it spells a special token.

        Raises:
            ValueError: if it cannot be written so.
        """
        ...

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of the ids, EOS and padding at the end left out."""
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
        self._text_of = [NO_TEXT, "", *alphabet]

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
        except KeyError:
            lacking = "".join(sorted(set(text) - set(self.alphabet)))
            raise ValueError(
                f"the alphabet {self.alphabet!r} of the tokenizer lacks {lacking!r}, as in {text!r}."
            ) from None

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of the ids; eos and padding at the end are nothing, other padding is ``NO_TEXT``.

        Raises:
            ValueError: if an id is outside the vocabulary.
        """
        indices = list(map(operator.index, ids))
        if indices and (min(indices) < 0 or max(indices) >= self.vocab_size):
            raise ValueError(f"ids {indices} leave the vocabulary 0..{self.vocab_size - 1}.")
        return "".join(map(self._text_of.__getitem__, _without_padding(indices, self.pad_id)))

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


def read_tokenizer(path: str) -> Any:
    """Return the tokenizer of transformers in a folder, or of a name of the hub whose files are in its cache here.

    Raises:
        ValueError: there is none, since nothing is downloaded. Of a model's config alone transformers would make a
            tokenizer without a vocabulary.
    """
    from transformers import AutoTokenizer

    directory, cure = Path(path), "Put the files there that tokenizer.save_pretrained writes."
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        if directory.is_dir():
            raise ValueError(f"the tokenizer at {path!r} cannot be read: {error} {cure}") from error
        raise ValueError(
            f"there is no tokenizer at {path!r}: no such directory, and no such name in the cache of the hub. "
            f"Nothing is downloaded here: fetch it first, as by hf download {path} --local-dir checkpoint."
        ) from error
    needed = sorted(set(tokenizer.vocab_files_names.values()))  # none, where tokens are bytes or code points
    if directory.is_dir() and needed and not any((directory / name).is_file() for name in needed):
        raise ValueError(f"there is no tokenizer at {path!r}: none of {needed} is in that directory. {cure}")
    return tokenizer


class TransformersTokenizer:
    """A Hugging Face tokenizer from a folder, or by a name of the hub whose files are in its cache here.

    Raises:
        ValueError: if there is none, since nothing is downloaded, or it has no eos or no pad token.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self.backend = read_tokenizer(self.path)
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(self.backend, name) is None:
                raise ValueError(f"the tokenizer at {self.path!r} has no {name}; set one and save it again.")
        added = self.backend.added_tokens_decoder.items()
        marked = {index for index, token in added if token.special}
        self.special_ids = frozenset({*self.backend.all_special_ids, *marked, self.pad_id, self.eos_id})
        # What the vocabulary does not know may be written as unknown, unless that is a token with a meaning of its own.
        self._unwritable = self.special_ids - ({self.backend.unk_token_id} - {self.pad_id, self.eos_id})

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
        """Ids of the text; what spells a special token is split into ordinary ones.

        Raises:
            ValueError: if the vocabulary writes it as a special token all the same, or cannot write it at all.
        """
        try:
            ids = self._ids(text)
        except Exception as error:  # tokenizers raises no narrower class
            raise ValueError(
                f"the tokenizer at {self.path!r} cannot write {text!r}: {self._lacking(text)}{error}. Take a task "
                "whose texts it can write, or a model whose vocabulary holds them."
            ) from error
        for index in ids:
            if index in self._unwritable:
                raise ValueError(
                    f"{text!r} spells {self.backend.convert_ids_to_tokens(index)!r}, which the tokenizer at "
                    f"{self.path!r} can only write as its special token {index}; leave it out of prompts and replies."
                )
        return ids

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of the ids; eos and padding at the end are nothing, any other special token is ``NO_TEXT``."""
        indices = _without_padding(list(map(operator.index, ids)), self.pad_id)
        pieces: list[list[int]] = [[]]
        for index in indices:
            if index == self.eos_id:
                continue
            if index in self.special_ids:
                pieces.append([])
            else:
                pieces[-1].append(index)
        return NO_TEXT.join(str(self.backend.decode(piece)) for piece in pieces)

    def spec(self) -> dict[str, Any]:
        """JSON value from which ``make_tokenizer`` builds the same tokenizer."""
        return {"kind": "transformers", "path": self.path}

    def _ids(self, text: str) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=False, split_special_tokens=True))

    def _lacking(self, text: str) -> str:
        """Return which characters cannot be written by themselves, to stand in a message; empty if all can."""
        lacking = []
        for character in dict.fromkeys(text):
            try:
                self._ids(character)
            except Exception:  # noqa: BLE001 - tokenizers raises no narrower class, and which it was is being told
                lacking.append(character)
        return f"it has no token for {', '.join(map(repr, lacking))}; " if lacking else ""


def alphabet_error(tokenizer: Tokenizer, texts: Iterable[str]) -> ValueError | None:
    """Return the error of all characters of the texts that are outside a ``CharTokenizer``'s alphabet, if any are.

    Its message ends with the setting of a tokenizer that is enough for these texts.
    """
    if not isinstance(tokenizer, CharTokenizer):
        return None
    known, foreign = frozenset(tokenizer.alphabet), dict[str, str]()  # to the first text that has it
    for text in texts:
        foreign = dict.fromkeys(set(text) - known, text) | foreign
    if not foreign:
        return None
    lacking, text = "".join(sorted(foreign)), foreign[min(foreign)]
    wider = f"char:{tokenizer.alphabet}{lacking}"
    if len(lacking) > _MOST_ADDED:
        wider, lacking = "transformers:<directory of a tokenizer>", f"{lacking[:9]}..."
    return ValueError(
        f"the alphabet of the tokenizer lacks {lacking!r}, as in {text!r}; leave that out of the texts, or give a "
        f"tokenizer that has it: {env_settings({'tokenizer': wider})}."
    )


def written_text(tokenizer: Tokenizer, ids: Iterable[SupportsIndex]) -> str:
    """Text of tokens that were all written: EOS, which is nothing, closes them, so that padding before it counts."""
    return tokenizer.decode([*ids, tokenizer.eos_id])


def _without_padding(ids: list[int], pad_id: int) -> list[int]:
    length = len(ids)
    while length and ids[length - 1] == pad_id:
        length -= 1
    return ids[:length]


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
        otherwise = '; a Hugging Face tokenizer is "transformers:<path>".'
        raise ValueError(
            f"tokenizer kind {kind!r} is unknown; expected one of {_KINDS}{did_you_mean(kind, _KINDS, otherwise)}"
        )
    try:
        return CharTokenizer(**options) if kind == "char" else TransformersTokenizer(**options)
    except TypeError as error:
        raise ValueError(f"tokenizer spec {spec!r} does not fit kind {kind!r}: {error}") from error
