"""Model directories: weights and tokenizer side by side, written whole, read by those who train on and who generate.

The tokenizer is written as transformers writes one, whatever the environment made it of, so that such a directory is a
complete checkpoint: ``AutoTokenizer`` and ``AutoModelForCausalLM`` read it wherever it is copied to.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from worldmtp.atomic_files import remove_partial, replacing
from worldmtp.choices import env_settings
from worldmtp.envs import CharTokenizer, Tokenizer, TransformersTokenizer
from worldmtp.interchange.importing import import_checkpoint, layout_with_heads
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.guards import check_weights_loaded

_TOKENIZER_CONFIG = "tokenizer_config.json"


def load_model(directory: Path, remedy: str = "Delete that directory to train the warm start again.") -> MTPModel:
    """Return a model that ``save_model`` wrote, to be trained on: its weights in float32.

    Raises:
        ValueError: its files are missing or damaged; the message ends with ``remedy``.
    """
    try:
        return MTPModel.from_pretrained(directory, dtype=torch.float32)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"the model in {directory} cannot be read: {error} {remedy}") from error


def holds_mtp_model(directory: Path) -> bool:
    """Return whether ``save_pretrained`` of an MTPModel wrote the directory, heads and all."""
    try:
        saved = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and saved.get("model_type") == MTPConfig.model_type


def holds_heads(directory: Path) -> bool:
    """Return whether a model directory brings heads: a saved MTPModel's, or a published checkpoint's.

    Raises:
        ValueError: a file of a published checkpoint is damaged.
    """
    return holds_mtp_model(directory) or layout_with_heads(directory) is not None


def load_with_heads(directory: Path, generator: torch.Generator, remedy: str) -> MTPModel:
    """Return a model that ``holds_heads``, to be trained on: its weights in float32.

    The generator draws what a published checkpoint lacks, the world heads.

    Raises:
        ValueError: files are missing or damaged, the message ends with ``remedy``; or what they mean is not in them.
    """
    if holds_mtp_model(directory):
        return load_model(directory, remedy)
    published = _load_published(directory, generator, torch.float32)
    assert published is not None, "of a directory that holds no heads"
    return published


def load_any_model(directory: Path) -> PreTrainedModel:
    """Load a model of this package's, a published checkpoint with its heads, or any causal LM of Hugging Face's.

    Raises:
        ValueError: the directory holds none, its files are missing or damaged, or what they mean is not in them.
    """
    # The generator draws world heads, which no published checkpoint has and decoding does not read.
    published = _load_published(directory, torch.Generator().manual_seed(0), dtype=None)
    if published is not None:
        return published
    try:
        model = load_causal_lm(directory, local_files_only=True)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"the model in {directory} cannot be read ({error}); give a directory that save_pretrained of an MTPModel "
            "or of a causal LM wrote."
        ) from error
    return model.eval()


def _load_published(directory: Path, generator: torch.Generator, dtype: torch.dtype | None) -> MTPModel | None:
    """Return a published checkpoint with its heads; None for any other directory.

    Raises:
        ValueError: files are damaged, or what they mean is not in them.
    """
    layout = layout_with_heads(directory)
    if layout is None:
        return None
    unknown = [name for name in ("concat_order", "hidden_stage") if getattr(layout, name) is None]
    if layout.head == "sequential" and unknown:
        raise ValueError(
            f"{directory} has MTP heads in the layout {layout.name!r}, whose {' and '.join(unknown)} cannot be "
            f"told from its files; in Python call worldmtp.interchange.import_checkpoint(path, {unknown[0]}=...), "
            "or measure it with probe_ids=, then save_pretrained(directory), and give that directory."
        )
    return import_checkpoint(directory, layout.name, dtype=dtype, generator=generator)


def load_causal_lm(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Return a causal LM of Hugging Face's, or an MTPModel, from a checkpoint that has all of its weights.

    Raises:
        ValueError: weights are missing or have another shape; they are named.
    """
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below, by name
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    model, info = loaded
    assert isinstance(model, PreTrainedModel)
    check_weights_loaded(model, info, path)
    return model


def has_tokenizer(directory: Path) -> bool:
    """Return whether a tokenizer of transformers was saved in the directory."""
    return (directory / _TOKENIZER_CONFIG).is_file()


def check_vocabulary(directory: Path, tokenizer: Tokenizer, option: str) -> None:
    """Raise if a model directory brings a tokenizer to whose ids an environment's gives another meaning.

    An environment may have fewer ids than the checkpoint, or more, such as an added padding token: whether the model
    has room for these is ``check_fits``'s question. Without a tokenizer nothing says what a checkpoint's ids mean.
    ``option`` is what named the directory, for the message.

    Raises:
        ValueError: the checkpoint would read other texts than are written; the message has the setting that mends it.
    """
    if not has_tokenizer(directory):
        return
    other = load_tokenizer(directory)
    theirs: dict[int, str] = {index: token for token, index in other.get_vocab().items()}
    if isinstance(tokenizer, TransformersTokenizer):
        ours = {index: token for token, index in tokenizer.backend.get_vocab().items()}
    else:  # texts, since nothing is known of how it writes its tokens
        ordinary = [id_ for id_ in range(tokenizer.vocab_size) if id_ not in (tokenizer.pad_id, tokenizer.eos_id)]
        ours = {id_: tokenizer.decode([id_]) for id_ in ordinary}
        theirs = {id_: str(other.decode([id_])) for id_ in ordinary if id_ in theirs}
    differing = [id_ for id_ in sorted(ours) if id_ in theirs and theirs[id_] != ours[id_]]
    if differing:
        first, own = differing[0], env_settings({"tokenizer": f"transformers:{directory}"})
        raise ValueError(
            f"{option}={directory} has a tokenizer of its own, in which {len(differing)} of the environment's "
            f"{len(ours)} tokens are others: id {first} is {theirs[first]!r} there and {ours[first]!r} in the "
            f"environment. Give the environment the checkpoint's: {own}. To train its weights on other tokens all the "
            f"same, give a copy of the directory without {_TOKENIZER_CONFIG}."
        )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer beside a model.

    Raises:
        ValueError: there is none, or its files are damaged.
    """
    if not has_tokenizer(directory):
        raise ValueError(
            f"{directory} has no {_TOKENIZER_CONFIG}, so its tokens cannot be told from text; put the tokenizer's "
            "files there (tokenizer.save_pretrained), or train the run again where its environment has a "
            "CharTokenizer or a TransformersTokenizer, which are saved with the weights."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer in {directory} cannot be read: {error}") from error
    return tokenizer


def save_model(model: MTPModel, directory: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write a model directory whole or not at all.

    Without a tokenizer the weights stand alone: they can be trained on, and not talked to.
    """
    remove_partial(directory.parent, directory.name)
    with replacing(directory) as partial:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def transformers_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerBase | None:
    """Return an environment's tokenizer as transformers has one; None where its class has no such form."""
    if isinstance(tokenizer, TransformersTokenizer):
        backend: PreTrainedTokenizerBase = tokenizer.backend
        return backend
    if isinstance(tokenizer, CharTokenizer):
        converted: PreTrainedTokenizerBase = tokenizer.to_transformers()
        return converted
    return None
