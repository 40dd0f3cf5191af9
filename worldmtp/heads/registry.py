"""Head families by name. Torch-free: a family's module is imported when a head of it is made.

A family is a class made as ``Head(config, trunk)`` that subclasses ``ActionConditionalHead`` or ``ParallelHead``; which
of the two is what the rest of the code asks about, never the name.
"""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from worldmtp.config import MTPConfig
    from worldmtp.heads.base import ActionConditionalHead, ParallelHead

_FAMILIES: dict[str, str] = {"sequential": "worldmtp.heads.sequential:SequentialHead"}


def available_heads() -> list[str]:
    """Names that ``MTPConfig(head=...)`` accepts."""
    return sorted(_FAMILIES)


def register_head(name: str, entry_point: str) -> None:
    """Adds a family; ``entry_point`` is ``"package.module:Class"``.

    Raises:
        ValueError: the name is taken by another class, or the entry point has another form.
    """
    if entry_point.count(":") != 1:
        raise ValueError(f"entry_point={entry_point!r} must look like 'package.module:Class'.")
    if _FAMILIES.get(name, entry_point) != entry_point:
        raise ValueError(f"head {name!r} is already registered as {_FAMILIES[name]!r}; choose another name.")
    _FAMILIES[name] = entry_point


def check_head(name: str) -> None:
    """Whether the family exists.

    Raises:
        ValueError: it does not; the nearest name is suggested.
    """
    if name not in _FAMILIES:
        near = difflib.get_close_matches(str(name), _FAMILIES, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"head={name!r} is unknown; choose from {available_heads()}.{hint}")


def make_head(config: "MTPConfig", trunk: "PreTrainedModel") -> "ActionConditionalHead | ParallelHead":
    """The heads that ``config`` describes, for ``trunk``.

    Raises:
        ValueError: no such family.
        TypeError: the registered class is of neither kind of head.
    """
    from worldmtp.heads.base import ActionConditionalHead, ParallelHead

    check_head(config.head)
    module, _, class_name = _FAMILIES[config.head].partition(":")
    head = getattr(import_module(module), class_name)(config, trunk)
    if not isinstance(head, (ActionConditionalHead, ParallelHead)):
        raise TypeError(
            f"head={config.head!r} made a {type(head).__name__}; subclass ActionConditionalHead, whose depths are "
            "chained by tokens, or ParallelHead, whose depths read the trunk alone."
        )
    return head
