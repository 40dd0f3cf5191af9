"""Model directories: weights and tokenizer side by side, written whole, read by those who train on and who generate.

The tokenizer is written as transformers writes one, whatever the environment made it of, so that such a directory is a
complete checkpoint: ``AutoTokenizer`` and ``AutoModelForCausalLM`` read it wherever it is copied to.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from worldmtp.config import MTPConfig
from worldmtp.envs import CharTokenizer, Tokenizer, TransformersTokenizer
from worldmtp.model import MTPModel

_TOKENIZER_CONFIG = "tokenizer_config.json"


def load_model(directory: Path, remedy: str = "Delete that directory to train the warm start again.") -> MTPModel:
    """A model that ``save_model`` wrote, to be trained on: its weights in float32.

    Raises:
        ValueError: its files are missing or damaged; the message ends with ``remedy``.
    """
    try:
        return MTPModel.from_pretrained(directory, dtype=torch.float32)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"the model in {directory} cannot be read: {error} {remedy}") from error


def holds_mtp_model(directory: Path) -> bool:
    """Whether ``save_pretrained`` of an MTPModel wrote the directory, heads and all."""
    try:
        saved = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and saved.get("model_type") == MTPConfig.model_type


def load_any_model(directory: Path) -> PreTrainedModel:
    """A model of this package's, or any causal LM of Hugging Face's.

    Raises:
        ValueError: the directory holds none, or its files are damaged.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"the model in {directory} cannot be read ({error}); give a directory that save_pretrained of an MTPModel "
            "or of a causal LM wrote."
        ) from error
    return model.eval()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ValueError: there is none, or its files are damaged.
    """
    if not (directory / _TOKENIZER_CONFIG).is_file():
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
    """Write a model beside its place and rename, so that a directory that exists is whole.

    Without a tokenizer the weights stand alone: they can be trained on, and not talked to.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.save_pretrained(partial)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


def transformers_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerBase | None:
    """An environment's tokenizer as one of transformers'; None where it is of a class that has no such form."""
    if isinstance(tokenizer, TransformersTokenizer):
        backend: PreTrainedTokenizerBase = tokenizer.backend
        return backend
    if isinstance(tokenizer, CharTokenizer):
        converted: PreTrainedTokenizerBase = tokenizer.to_transformers()
        return converted
    return None
