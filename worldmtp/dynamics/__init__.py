"""World models of text: one protocol, several back-ends, one way to imagine.

Names are loaded on first use: an environment that is handed a ``WorldModel`` needs the protocol and no network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.dynamics.backends import WORLD_MODELS, check_backend, make_world_model
    from worldmtp.dynamics.exact import ExactWorldModel, TokenMDP
    from worldmtp.dynamics.mtp import MTPWorldModel
    from worldmtp.dynamics.oracle import OracleWorldModel
    from worldmtp.dynamics.parallel import ParallelWorldModel
    from worldmtp.dynamics.placebo import IdentityWorldModel, ShuffledWorldModel
    from worldmtp.dynamics.protocol import ImaginedRollout, LatentState, Prediction, WorldModel
    from worldmtp.dynamics.rollout import imagine

__all__ = [
    "WORLD_MODELS",
    "ExactWorldModel",
    "IdentityWorldModel",
    "ImaginedRollout",
    "LatentState",
    "MTPWorldModel",
    "OracleWorldModel",
    "ParallelWorldModel",
    "Prediction",
    "ShuffledWorldModel",
    "TokenMDP",
    "WorldModel",
    "check_backend",
    "imagine",
    "make_world_model",
]

_MODULE_OF = {
    "WORLD_MODELS": "backends",
    "ExactWorldModel": "exact",
    "IdentityWorldModel": "placebo",
    "ImaginedRollout": "protocol",
    "LatentState": "protocol",
    "MTPWorldModel": "mtp",
    "OracleWorldModel": "oracle",
    "ParallelWorldModel": "parallel",
    "Prediction": "protocol",
    "ShuffledWorldModel": "placebo",
    "TokenMDP": "exact",
    "WorldModel": "protocol",
    "check_backend": "backends",
    "imagine": "rollout",
    "make_world_model": "backends",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
