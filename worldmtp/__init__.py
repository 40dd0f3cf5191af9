"""Multi-token-prediction heads as a world model of text.

The public names are loaded on first use, so that ``import worldmtp`` costs milliseconds and pulls no torch: command
lines answer ``--help`` at once, and a tool that only reads metrics never pays for a framework. The rooms themselves
(``worldmtp.envs``, ``worldmtp.heads``, ...) load the same way.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmtp.config import MTPConfig
    from worldmtp.envs import register_task
    from worldmtp.model import MTPModel

__version__ = "0.1.0"

__all__ = ["MTPConfig", "MTPModel", "__version__", "register_task"]

_HOME_OF = {
    "MTPConfig": "worldmtp.config",
    "MTPModel": "worldmtp.model",
    "register_task": "worldmtp.envs",
}
_ROOMS = (
    "agents",
    "analysis",
    "decoding",
    "dynamics",
    "envs",
    "heads",
    "interchange",
    "post_training",
    "returns",
    "studies",
    "tracking",
)


def __getattr__(name: str) -> object:
    """A public object or a room, imported when it is first asked for."""
    if name in _ROOMS:
        return import_module(f"worldmtp.{name}")
    if name not in _HOME_OF:
        raise AttributeError(_unknown(name))
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_ROOMS})


def _unknown(name: str) -> str:
    from difflib import get_close_matches  # here: only a mistake pays for it

    message = f"module 'worldmtp' has no attribute {name!r}"
    close = get_close_matches(name, [*_HOME_OF, *_ROOMS], n=1)
    return f"{message}; did you mean {close[0]!r}?" if close else f"{message}; public names: {', '.join(__all__)}."
