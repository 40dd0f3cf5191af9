"""The model: any Hugging Face causal LM as trunk, heads for depths 2 .. K and world heads. Names load on first use."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.model.config import MTPConfig as MTPConfig
    from worldmtp.model.model import IGNORE_INDEX as IGNORE_INDEX
    from worldmtp.model.model import MTPModel as MTPModel
    from worldmtp.model.model import MTPOutput as MTPOutput

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"config": "MTPConfig", "model": "IGNORE_INDEX MTPModel MTPOutput"}
)
