"""What an ``MTPModel`` refuses or warns of where others load, save or train it: each would go wrong in silence.

Left out: what a checkpoint's config must be, which is ``MTPConfig``'s.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from worldmtp.interchange.layouts import find_layout
from worldmtp.interchange.tensors import CONFIG, PARAMS, read_config
from worldmtp.model.trunk import LogitChanges, evaluation_mode, run_trunk

_SAME = 0.02
"""Share of the largest logit up to which two are one: half precision rounds by less, a layer moves them by more."""
TRAINS_HEADS = "mtp"
"""The tag of a trainer that trains the heads, in the list that TRL's trainers pass to ``add_model_tags``."""


def check_weights_loaded(model: nn.Module, info: Mapping[str, Any], path: object) -> None:
    """Raise if transformers, by its loading ``info``, has drawn weights at random that the checkpoint lacks.

    Raises:
        ValueError: weights are missing or have another shape; the message names them. A tied weight may be stored under
            one of its names.
    """
    absent = set(info["missing_keys"])
    missing = sorted(absent - _stored_under_another_name(model, absent))
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if missing or mismatched:
        raise ValueError(
            f"{path} does not hold this model: missing weights: {_some(missing)}; weights of another shape: "
            f"{_some(mismatched)}. Restore the checkpoint's files, or train the model anew."
        )


def unpublished(path: object) -> object:
    """Return the path, unless it is of a published checkpoint in which transformers would find no config.

    Raises:
        ValueError: it is; the message says what reads it.
    """
    if isinstance(path, (str, Path)) and (Path(path) / PARAMS).is_file() and not (Path(path) / CONFIG).is_file():
        layout = find_layout(read_config(Path(path)))
        if layout is not None:
            raise ValueError(
                f"{path} is a published checkpoint in the layout {layout.name!r}; load trunk and heads with "
                "worldmtp.interchange.import_checkpoint(path)."
            )
    return path


def checked_trunk(trunk: nn.Module) -> PreTrainedModel:
    """Return the trunk, if heads can stand on it.

    Raises:
        TypeError: it is no causal LM of Hugging Face, or one inside PEFT's wrapper.
        ValueError: it returns tuples.
    """
    if type(trunk).__module__.partition(".")[0] == "peft":
        raise TypeError(
            f"trunk is PEFT's wrapper {type(trunk).__name__}; put heads on the model without it, then adapters in the "
            "trunk: worldmtp.model.lora.add_lora(MTPModel.from_trunk(lm, config), lora_config). Adapters that are "
            "trained already are merged by trunk.merge_and_unload() first."
        )
    if not isinstance(trunk, PreTrainedModel) or trunk.get_output_embeddings() is None:
        raise TypeError(
            f"trunk is a {type(trunk).__name__}; from_trunk needs a Hugging Face causal LM with an LM head, such as "
            "AutoModelForCausalLM.from_pretrained(path)."
        )
    if not trunk.config.return_dict:
        raise ValueError(
            "trunk.config.return_dict=False makes it return tuples, whose parts have no names; set it to True."
        )
    return trunk


@torch.no_grad()
def check_logits(trunk: PreTrainedModel) -> None:
    """Raise unless the trunk's logits are what its LM head makes of the last hidden state: two tokens are tried.

    Heads share the LM head, and acting, learning and decoding read it alone: a trunk that does more on the way to its
    logits, as those made for masked tokens do, would be another policy there.

    Raises:
        ValueError: the logits are others.
    """
    lm_head = trunk.get_output_embeddings()
    assert lm_head is not None  # checked_trunk has seen to it
    dtypes = {trunk.dtype, *(weight.dtype for weight in lm_head.parameters())}
    if any(weight.is_meta for weight in lm_head.parameters()):  # nothing is computed there
        return
    # An LM head kept in another precision than the trunk works inside autocast alone.
    mixed = torch.autocast(trunk.device.type, torch.bfloat16, enabled=len(dtypes) > 1)
    last = trunk.config.get_text_config().vocab_size - 1
    tokens = torch.tensor([[last, last // 2]], device=trunk.device)  # not 0, often padding, whose embedding is none
    with evaluation_mode(trunk), mixed:  # dropout would differ, and draw
        hidden = run_trunk(trunk, tokens, use_cache=False)[0].post_norm
        logits = trunk(input_ids=tokens, use_cache=False).logits
        fits = hidden.shape[-1] == getattr(lm_head, "in_features", hidden.shape[-1])  # weights may be packed
        found = LogitChanges.of(trunk.config)(lm_head(hidden)) if fits else None
    if found is not None and found.shape == logits.shape:
        found, logits = (each.float().nan_to_num() for each in (found, logits))  # overflow is no fault of the LM head's
        if (found - logits).abs().max() <= _SAME * logits.abs().max():
            return
    raise ValueError(
        f"the logits of {type(trunk).__name__} are not its LM head's output on the last hidden state: it has layers in "
        "between, or changes them in a way that is not known; choose another trunk."
    )


def warn_of_untrained_heads(tags: Sequence[str], depth: int) -> None:
    """Warn if the trainer with these tags is one of TRL's that does not train the heads.

    They would stay as they are while the trunk moves away from them.
    """
    if "trl" in tags and TRAINS_HEADS not in tags and depth > 1:
        warnings.warn(
            f"this trainer ({', '.join(tags)}) trains the trunk alone: the heads of depths 2 to {depth} and the world "
            "heads keep their weights, and their predictions go stale as the trunk moves. Train model.trunk to do "
            "without heads, or take the trainer of the same name from worldmtp.post_training, with MTP before it.",
            stacklevel=3,
        )


def _stored_under_another_name(model: nn.Module, missing: set[str]) -> set[str]:
    """Return those of ``missing`` that are one tensor with a weight which is not missing."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for shared in names.values() if not set(shared) <= missing for name in shared}


def _some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "none"


def checked_token_limit(num_tokens: int, vocab_size: int) -> int:
    """Return the number of ids that a model's logits are cut to.

    Raises:
        ValueError: the vocabulary has fewer ids.
    """
    if not 1 <= num_tokens <= vocab_size:
        raise ValueError(
            f"the tokenizer has {num_tokens} ids and the model a vocabulary of {vocab_size}; resize the model "
            f"(resize_token_embeddings({num_tokens})) or use the model's own tokenizer."
        )
    return num_tokens
