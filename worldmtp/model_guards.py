"""What an ``MTPModel`` refuses or warns of where others load, save or train it: each would go wrong in silence.

Left out: what a checkpoint's config must be, which is ``MTPConfig``'s.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

TRAINS_HEADS = "mtp"
"""The tag of a trainer that trains the heads, in the list that TRL's trainers pass to ``add_model_tags``."""


def check_weights_loaded(model: nn.Module, info: Mapping[str, Any], path: object) -> None:
    """Raise if transformers has drawn weights at random for those that a checkpoint lacks.

    Args:
        model: as loaded.
        info: transformers' loading info.
        path: of the checkpoint.

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


def check_no_adapters(trunk: nn.Module) -> None:
    """Raise if saving the whole model would lose the trunk's adapters.

    Raises:
        ValueError: the trunk has adapters, without which the weights beside them would not be found again.
    """
    if hasattr(trunk, "peft_config"):
        raise ValueError(
            "the trunk has adapters, and a checkpoint would be loaded without them and without the weights they "
            "stand beside; use worldmtp.lora.save_lora(model, directory), or merge_lora(model) first."
        )


def warn_of_untrained_heads(tags: Sequence[str], depth: int) -> None:
    """Warn if the trainer with these tags is one of TRL's that does not train the heads.

    They would stay as they are while the trunk moves away from them.
    """
    if "trl" in tags and TRAINS_HEADS not in tags and depth > 1:
        warnings.warn(
            f"this trainer ({', '.join(tags)}) trains the trunk alone: the heads of depths 2 to {depth} and the world "
            "heads keep their weights, and their predictions go stale as the trunk moves. Train model.trunk to do "
            "without heads, or train the heads again afterwards with MTPSFTTrainer.",
            stacklevel=3,
        )


def _stored_under_another_name(model: nn.Module, missing: set[str]) -> set[str]:
    """Those of ``missing`` that are one tensor with a weight which is not missing."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for shared in names.values() if not set(shared) <= missing for name in shared}


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
