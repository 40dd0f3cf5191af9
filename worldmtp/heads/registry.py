"""Head families by name. Torch-free: a family's module is imported when a head of it is made.

A family is a class made as ``Family(config, trunk)`` that subclasses ``ActionConditionalHead`` or ``ParallelHead``;
which of the two is what the rest of the code asks about, never the name.
"""

import copy
from importlib import import_module
from typing import TYPE_CHECKING

from worldmtp.choices import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from worldmtp.heads.base import ActionConditionalHead, Head, ParallelHead
    from worldmtp.model.config import MTPConfig

_FAMILIES: dict[str, str] = {
    "blockwise": "worldmtp.heads.blockwise:BlockwiseHead",
    "eagle": "worldmtp.heads.eagle:EagleHead",
    "hydra": "worldmtp.heads.hydra:HydraHead",
    "latent": "worldmtp.heads.latent:LatentHead",
    "linear": "worldmtp.heads.linear:LinearHead",
    "medusa": "worldmtp.heads.medusa:MedusaHead",
    "modulated": "worldmtp.heads.modulated:ModulatedHead",
    "parallel": "worldmtp.heads.parallel:GloeckleHead",
    "sequential": "worldmtp.heads.sequential:SequentialHead",
}


def available_heads() -> list[str]:
    """Return the names that ``MTPConfig(head=...)`` accepts."""
    return sorted(_FAMILIES)


def register_head(name: str, entry_point: str) -> None:
    """Add a family; ``entry_point`` is ``"package.module:Class"``.

    Raises:
        ValueError: the name is taken by another class, or the entry point has another form.
    """
    if entry_point.count(":") != 1:
        raise ValueError(f"entry_point={entry_point!r} must look like 'package.module:Class'.")
    if _FAMILIES.get(name, entry_point) != entry_point:
        raise ValueError(f"head {name!r} is already registered as {_FAMILIES[name]!r}; choose another name.")
    _FAMILIES[name] = entry_point


def check_head(name: str) -> None:
    """Raise ValueError if there is no such family; the nearest name is suggested."""
    check_choice("head", name, available_heads())


def head_class(name: str) -> "type[ActionConditionalHead] | type[ParallelHead]":
    """Return the class of a family.

    Raises:
        ValueError: no such family.
        TypeError: the registered class is of neither kind of head.
    """
    from worldmtp.heads.base import ActionConditionalHead, ParallelHead

    check_head(name)
    module, _, class_name = _FAMILIES[name].partition(":")
    family = getattr(import_module(module), class_name)
    if not (isinstance(family, type) and issubclass(family, (ActionConditionalHead, ParallelHead))):
        raise TypeError(
            f"head={name!r} is {family!r}; subclass ActionConditionalHead, whose depths are chained by tokens, or "
            "ParallelHead, whose depths read the trunk alone."
        )
    return family


def bind(config: "MTPConfig", trunk_config: "PreTrainedConfig", head_block: str) -> "MTPConfig":
    """Return a copy of ``config`` for that trunk: its sizes filled in, and the family's choices where it has none.

    Raises:
        ValueError: there is no such family, or the trunk has no such layer.
    """
    bound = copy.deepcopy(config)
    text_config = trunk_config.get_text_config()
    bound.trunk_config = trunk_config
    bound.vocab_size = text_config.vocab_size
    bound.hidden_size = text_config.hidden_size
    bound.head_block = head_block
    for name, value in vars(head_class(config.head).defaults(text_config)).items():
        if getattr(bound, name) is None:
            setattr(bound, name, value)
    assert bound.feature_layers is not None
    bound.feature_layers = _resolve_layers(bound.feature_layers, text_config.num_hidden_layers)
    return bound


def make_head(config: "MTPConfig", trunk: "PreTrainedModel") -> "ActionConditionalHead | ParallelHead":
    """Return the heads that ``config``, bound to its trunk, describes.

    Raises:
        ValueError: there is no such family, or it does not support what the config asks for.
        TypeError: the registered class is of neither kind of head.
    """
    from worldmtp.heads.base import ActionConditionalHead, ParallelHead

    family = head_class(config.head)
    if config.share_depths and not family.shareable:
        raise ValueError(
            f"share_depths=True with head={config.head!r}: its depths differ by their weights alone, or in their "
            "inputs' widths; choose a family with one recursive step, such as 'sequential'."
        )
    if config.stride != 1 and issubclass(family, ActionConditionalHead):
        raise ValueError(
            f"stride={config.stride} with head={config.head!r}: a chain needs every token in between; choose a "
            "parallel family, or stride=1."
        )
    _refuse_ignored(config, family.ignores)
    _check_starts(config, family)
    head = family(config, trunk)  # type: ignore[call-arg]  # what is registered is made of these two
    assert isinstance(head, (ActionConditionalHead, ParallelHead))
    return head


def _resolve_layers(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Return indices counted from the first layer."""
    for index in layers:
        if not -num_layers <= index < num_layers:
            raise ValueError(
                f"feature_layers={list(layers)} names layer {index}, and the trunk has {num_layers}; "
                f"choose from {-num_layers} .. {num_layers - 1}."
            )
    return tuple(index % num_layers for index in layers)


_IGNORED = {
    "concat_order": ("embedding_first", "nothing is concatenated"),
    "feature_layers": ((), "it reads the trunk's last hidden state only"),
    "head_layers": (1, "it has no stack of layers"),
    "head_width": (None, "it has no inner width to choose"),
    "recycle_stage": ("post_norm", "no depth hands anything to the next"),
}
"""What a field that a family ignores must be, and why: set and ignored, it would be saved as if it had counted."""


def _refuse_ignored(config: "MTPConfig", names: tuple[str, ...]) -> None:
    for name in names:
        neutral, reason = _IGNORED[name]
        if getattr(config, name) != neutral:
            raise ValueError(
                f"{name}={getattr(config, name)!r} with head={config.head!r}: {reason}; leave {name} out, or choose a "
                "family that reads it."
            )


def _check_starts(config: "MTPConfig", family: "type[Head]") -> None:
    if config.head_init == "copy_trunk" and not family.has_trunk_layers:
        raise ValueError(
            f"head_init='copy_trunk' with head={config.head!r}: these heads have no layer of the trunk's form to copy "
            "into; use head_init='family' or 'random'."
        )
    copies = family.copies_lm_head and config.head_init != "random"
    if config.output_norm != "none" or not (config.unembedding == "shared" or copies):
        return
    if family.sums_residuals:
        raise ValueError(
            f"output_norm='none' with head={config.head!r}: the LM head's weights expect normed states, which a "
            "decoder layer's output is not; use output_norm='shared' or 'own'."
        )
    if config.hidden_stage == "pre_norm":
        raise ValueError(
            f"hidden_stage='pre_norm' and output_norm='none' with head={config.head!r}: the LM head's weights expect "
            "normed states; use output_norm='shared' or 'own', or hidden_stage='post_norm'."
        )
