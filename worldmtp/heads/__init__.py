"""Families of multi-token-prediction heads. Public names; importing them does not import torch until one is used."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.heads.base import ActionConditionalHead as ActionConditionalHead
    from worldmtp.heads.base import FamilyDefaults as FamilyDefaults
    from worldmtp.heads.base import Head as Head
    from worldmtp.heads.base import OutputLayers as OutputLayers
    from worldmtp.heads.base import ParallelHead as ParallelHead
    from worldmtp.heads.blockwise import BlockwiseHead as BlockwiseHead
    from worldmtp.heads.eagle import EagleHead as EagleHead
    from worldmtp.heads.hydra import HydraHead as HydraHead
    from worldmtp.heads.latent import LatentHead as LatentHead
    from worldmtp.heads.linear import LinearHead as LinearHead
    from worldmtp.heads.medusa import MedusaHead as MedusaHead
    from worldmtp.heads.modulated import ModulatedHead as ModulatedHead
    from worldmtp.heads.parallel import GloeckleHead as GloeckleHead
    from worldmtp.heads.registry import available_heads as available_heads
    from worldmtp.heads.registry import make_head as make_head
    from worldmtp.heads.registry import register_head as register_head
    from worldmtp.heads.sequential import SequentialHead as SequentialHead

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base": "ActionConditionalHead FamilyDefaults Head OutputLayers ParallelHead",
        "blockwise": "BlockwiseHead",
        "eagle": "EagleHead",
        "hydra": "HydraHead",
        "latent": "LatentHead",
        "linear": "LinearHead",
        "medusa": "MedusaHead",
        "modulated": "ModulatedHead",
        "parallel": "GloeckleHead",
        "registry": "available_heads make_head register_head",
        "sequential": "SequentialHead",
    },
)
