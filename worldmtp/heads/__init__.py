"""Families of multi-token-prediction heads. Public names; importing them does not import torch until one is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.heads.base import ActionConditionalHead, ParallelHead
    from worldmtp.heads.registry import available_heads, make_head, register_head
    from worldmtp.heads.sequential import SequentialHead

_MODULES = {
    "ActionConditionalHead": "worldmtp.heads.base",
    "ParallelHead": "worldmtp.heads.base",
    "SequentialHead": "worldmtp.heads.sequential",
    "available_heads": "worldmtp.heads.registry",
    "make_head": "worldmtp.heads.registry",
    "register_head": "worldmtp.heads.registry",
}

__all__ = [
    "ActionConditionalHead",
    "ParallelHead",
    "SequentialHead",
    "available_heads",
    "make_head",
    "register_head",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
