"""What a trainer of this room refuses at its construction, before TRL fails later and elsewhere."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.precision import check_trained_weights


def check_model(model: Any) -> None:
    """Only a model in memory, with heads.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(model, MTPModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected an MTPModel; make one with "
            "MTPModel.from_trunk(trunk, MTPConfig(depth=...)) or MTPModel.from_pretrained(path)."
        )


def warn_of_half_precision(model: MTPModel) -> None:
    """Warn where weights to be trained are kept in half precision; Trainer's optimiser keeps no copies in float32."""
    try:
        check_trained_weights("the trainer", model.parameters())
    except ValueError as error:
        warnings.warn(f"{error} Trainer has bf16=True for that.", stacklevel=4)


def check_config(args: Any, config_class: type) -> None:
    """Only this room's configuration: TRL's own lacks the coefficient and has a GPU's defaults.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(args, config_class):
        raise TypeError(f"args is of type {type(args).__name__}, expected {config_class.__name__}; it takes the same.")


def check_vocabulary(model: MTPModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every token has a row in the model's embedding.

    Raises:
        ValueError: the tokenizer has more tokens.
    """
    vocab_size = model.config.get_text_config().vocab_size
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's vocabulary {vocab_size}; build the trunk with "
            f"vocab_size={len(tokenizer)} or call model.resize_token_embeddings({len(tokenizer)})."
        )


def check_not_empty(name: str, dataset: Any, remedy: str) -> None:
    """A dataset whose length is known has examples.

    Raises:
        ValueError: it has none.
    """
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"{name} is empty: got 0 examples, expected at least 1; {remedy}.")


def named_sets(name: str, datasets: Any) -> list[tuple[str, Any]]:
    """Pairs of name and dataset: of one dataset its own, of a dict ``name['key']`` each, of None none."""
    if isinstance(datasets, Mapping):
        return [(f"{name}[{key!r}]", dataset) for key, dataset in datasets.items()]
    return [] if datasets is None else [(name, datasets)]


def check_has_target(
    name: str,
    dataset: Any,
    remove_unused_columns: Callable[[Dataset, str], Dataset],
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    max_length: int | None,
) -> None:
    """A prepared dataset whose length is known has a token to learn; one row with one is enough.

    ``collate`` decides, as it makes the labels: the first token of a text is never a target.

    Raises:
        ValueError: no row has a target.
    """
    if not isinstance(dataset, Dataset):
        return
    rows = remove_unused_columns(dataset, name)
    for row in rows:
        if (collate([row])["labels"][:, 1:] != IGNORE_INDEX).any():
            return
    raise ValueError(
        f"{name} has no token to learn: of {len(dataset)} examples left after TRL's preparation, none has a label "
        f"other than {IGNORE_INDEX} within max_length={max_length}. Label the completions, or raise max_length if they "
        "lie beyond it."
    )
