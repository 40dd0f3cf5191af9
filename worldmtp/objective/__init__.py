"""The objective: how depths 2 .. K are trained, and the one multi-token loss. Names load on first use."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.objective.objective import MTPObjective as MTPObjective

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"objective": "MTPObjective"})
