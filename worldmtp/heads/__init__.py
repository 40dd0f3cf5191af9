"""Families of multi-token-prediction heads. Public names; importing them does not import torch until one is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.heads.base import ActionConditionalHead, FamilyDefaults, Head, ParallelHead
    from worldmtp.heads.blockwise import BlockwiseHead
    from worldmtp.heads.eagle import EagleHead
    from worldmtp.heads.features import TrunkFeatures
    from worldmtp.heads.hydra import HydraHead
    from worldmtp.heads.latent import LatentHead
    from worldmtp.heads.linear import LinearHead
    from worldmtp.heads.medusa import MedusaHead
    from worldmtp.heads.modulated import ModulatedHead
    from worldmtp.heads.output import OutputLayers
    from worldmtp.heads.parallel import GloeckleHead
    from worldmtp.heads.registry import available_heads, make_head, register_head
    from worldmtp.heads.sequential import SequentialHead

_MODULES = {
    "ActionConditionalHead": "worldmtp.heads.base",
    "BlockwiseHead": "worldmtp.heads.blockwise",
    "EagleHead": "worldmtp.heads.eagle",
    "FamilyDefaults": "worldmtp.heads.base",
    "GloeckleHead": "worldmtp.heads.parallel",
    "Head": "worldmtp.heads.base",
    "HydraHead": "worldmtp.heads.hydra",
    "LatentHead": "worldmtp.heads.latent",
    "LinearHead": "worldmtp.heads.linear",
    "MedusaHead": "worldmtp.heads.medusa",
    "ModulatedHead": "worldmtp.heads.modulated",
    "OutputLayers": "worldmtp.heads.output",
    "ParallelHead": "worldmtp.heads.base",
    "SequentialHead": "worldmtp.heads.sequential",
    "TrunkFeatures": "worldmtp.heads.features",
    "available_heads": "worldmtp.heads.registry",
    "make_head": "worldmtp.heads.registry",
    "register_head": "worldmtp.heads.registry",
}

__all__ = [
    "ActionConditionalHead",
    "BlockwiseHead",
    "EagleHead",
    "FamilyDefaults",
    "GloeckleHead",
    "Head",
    "HydraHead",
    "LatentHead",
    "LinearHead",
    "MedusaHead",
    "ModulatedHead",
    "OutputLayers",
    "ParallelHead",
    "SequentialHead",
    "TrunkFeatures",
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
