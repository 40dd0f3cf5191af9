"""What a trainer of this room refuses: at its construction, before TRL fails later and elsewhere, and at a step.

A step stops at the first loss or weight that is not finite. The Trainer's own ``logging_nan_inf_filter`` hides such a
loss in the log and trains on.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.precision import check_trained_weights

WHOLE_POLICY: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1.0),
    "top_k": (None, 0),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "generation_kwargs": (None, {}),
}
"""Arguments of TRL's sampling and the values by which no token is left out."""


def check_model(model: Any) -> None:
    """Raise if the model is not one in memory, with heads.

    Raises:
        TypeError: it is not.
    """
    if type(model).__module__.partition(".")[0] == "peft":
        raise TypeError(
            f"model is PEFT's wrapper {type(model).__name__}, which would freeze the heads; put adapters into the "
            "trunk with worldmtp.model.lora.add_lora(model, lora_config), which trains and saves the heads beside them."
        )
    if not isinstance(model, MTPModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected an MTPModel; make one with "
            "MTPModel.from_trunk(trunk, MTPConfig(depth=...)) or MTPModel.from_pretrained(path)."
        )


def warn_of_half_precision(model: MTPModel) -> None:
    """Warn if trained weights are kept in half precision; Trainer's optimiser keeps no copies in float32."""
    try:
        check_trained_weights("the trainer", model.parameters())
    except ValueError as error:
        warnings.warn(f"{error} Trainer has bf16=True for that.", stacklevel=5)


def check_config(args: Any, config_class: type) -> None:
    """Raise if the configuration is not this room's: TRL's own has no objective and a GPU's defaults.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(args, config_class):
        raise TypeError(f"args is of type {type(args).__name__}, expected {config_class.__name__}; it takes the same.")


def check_vocabulary(model: MTPModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if a token has no row in the model's embedding.

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
    """Raise if a dataset whose length is known has no example.

    Raises:
        ValueError: it has none.
    """
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"{name} is empty: got 0 examples, expected at least 1; {remedy}.")


def check_columns(name: str, dataset: Any, required: Sequence[Sequence[str]]) -> None:
    """Raise unless a dataset has all columns of one of the lists; one whose columns are not known is let through.

    Raises:
        ValueError: it lacks some.
    """
    found = getattr(dataset, "column_names", None)
    if found is None or not required or any(set(columns) <= set(found) for columns in required):
        return
    choices = " or ".join(", ".join(repr(column) for column in columns) for columns in required)
    raise ValueError(
        f"{name} has the columns {sorted(found)}, expected {choices}; rename them (dataset.rename_column) or make them."
    )


def check_pairs(name: str, dataset: Any) -> None:
    """Raise if no pair of a dataset prefers one answer to another; warn of those that do not.

    Equal answers cancel out in every loss of pairs, without a word. A dataset whose rows are not known, or that has no
    pairs, is let through.

    Raises:
        ValueError: a row has one answer alone, or all pairs are of equal answers.
    """
    if not (isinstance(dataset, Dataset) and {"chosen", "rejected"} <= set(dataset.column_names)):
        return
    pairs = list(zip(dataset["chosen"], dataset["rejected"], strict=True))
    single = [row for row, pair in enumerate(pairs) if None in pair]
    if single:
        raise ValueError(
            f"{name} has {len(single)} rows with one answer alone, the first is row {single[0]}: a preference needs a "
            "chosen and a rejected one. Leave them out, or train on single answers with MTPKTOTrainer (label) or "
            "MTPSFTTrainer."
        )
    equal = [row for row, (chosen, rejected) in enumerate(pairs) if chosen == rejected]
    if not equal:
        return
    found = f"{len(equal)} of the {len(pairs)} pairs of {name} have equal answers, the first is row {equal[0]}"
    cure = 'leave them out: dataset.filter(lambda row: row["chosen"] != row["rejected"])'
    if len(equal) == len(pairs):
        raise ValueError(
            f"{found}: nothing is preferred to anything, so nothing would be learnt; make the rejected ones anew."
        )
    warnings.warn(f"{found}, which teach no preference; {cure}.", stacklevel=4)


def named_sets(name: str, datasets: Any) -> list[tuple[str, Any]]:
    """Return pairs of name and dataset: one for a dataset, ``name['key']`` for each of a dict, none for None."""
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
    """Raise if a prepared dataset whose length is known has no token to learn.

    ``collate`` makes the labels; the first token of a text is never a target.

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


def check_finite(terms: Mapping[str, float], step: int, output_dir: str) -> None:
    """Raise if a term of the loss is NaN or infinite.

    Raises:
        FloatingPointError: names the step, every such term with its value, and the last good checkpoint.
    """
    broken = {name: value for name, value in terms.items() if not math.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name}={value}" for name, value in broken.items())
        raise FloatingPointError(
            f"Non-finite loss at step {step + 1}: term {listed}. The last good checkpoint is "
            f"{_last_checkpoint(output_dir, step)}; resume from it with a lower learning rate or max_grad_norm > 0."
        )


def check_finite_weights(parameters: Iterable[tuple[str, Tensor]], step: int, output_dir: str) -> None:
    """Raise if a weight is NaN or infinite, so that no checkpoint ever holds one.

    Raises:
        FloatingPointError: names the step, the first such parameter and the last good checkpoint.
    """
    for name, parameter in parameters:
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(
                f"Non-finite weights after step {step}: term {name}. Nothing was saved; the last good checkpoint is "
                f"{_last_checkpoint(output_dir, step - 1)}; resume from it with a lower learning rate or "
                "max_grad_norm > 0."
            )


def _last_checkpoint(output_dir: str, step: int) -> str:
    """Return the newest checkpoint of ``output_dir`` up to ``step``; a later one belongs to another run."""
    found = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdecimal() and int(number) <= step:
            found[int(number)] = path
    return str(found[max(found)]) if found else f"none (no checkpoint in {output_dir})"
