"""Multi-token-prediction heads as a world model of text.

The public names are loaded on first use, so that ``import worldmtp`` costs milliseconds and pulls no torch: command
lines answer ``--help`` at once, and a tool that only reads metrics never pays for a framework. The rooms themselves
(``worldmtp.envs``, ``worldmtp.heads``, ...) load the same way.
"""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.envs import register_task as register_task
    from worldmtp.model import MTPConfig as MTPConfig
    from worldmtp.model import MTPModel as MTPModel
    from worldmtp.training import open_run as open_run

__version__ = "0.1.0"

_PUBLIC = {
    "agents": "",
    "analysis": "",
    "atomic_files": "",
    "checkpoint": "",
    "cli": "",
    "decoding": "",
    "dynamics": "",
    "envs": "",
    "heads": "",
    "interchange": "",
    "model": "",
    "objective": "",
    "post_training": "",
    "random": "",
    "returns": "",
    "statistics": "",
    "studies": "",
    "tracking": "",
    "training": "",
}
"""The rooms, each loaded as an attribute."""

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    _PUBLIC
    | {
        "envs.registry": "register_task",
        "model.config": "MTPConfig",
        "model.model": "MTPModel",
        "training.runs": "open_run",
    },
)
