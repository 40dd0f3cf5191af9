"""World models of text: one protocol, several back-ends, one way to imagine."""

from worldmtp.dynamics.backends import WORLD_MODELS, make_world_model
from worldmtp.dynamics.mtp import MTPWorldModel
from worldmtp.dynamics.oracle import OracleWorldModel
from worldmtp.dynamics.placebo import IdentityWorldModel, ShuffledWorldModel
from worldmtp.dynamics.protocol import ImaginedRollout, LatentState, Prediction, WorldModel
from worldmtp.dynamics.rollout import imagine

__all__ = [
    "WORLD_MODELS",
    "IdentityWorldModel",
    "ImaginedRollout",
    "LatentState",
    "MTPWorldModel",
    "OracleWorldModel",
    "Prediction",
    "ShuffledWorldModel",
    "WorldModel",
    "imagine",
    "make_world_model",
]
