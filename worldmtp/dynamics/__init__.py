"""World models of text: one protocol, several back-ends, one way to imagine.

Names are loaded on first use: an environment that is handed a ``WorldModel`` needs the protocol and no network.
"""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.dynamics.backends import WORLD_MODELS as WORLD_MODELS
    from worldmtp.dynamics.backends import MTPWorldModel as MTPWorldModel
    from worldmtp.dynamics.backends import check_backend as check_backend
    from worldmtp.dynamics.backends import make_world_model as make_world_model
    from worldmtp.dynamics.exact import ExactWorldModel as ExactWorldModel
    from worldmtp.dynamics.exact import TokenMDP as TokenMDP
    from worldmtp.dynamics.imagination import ImaginedRollout as ImaginedRollout
    from worldmtp.dynamics.imagination import Policy as Policy
    from worldmtp.dynamics.imagination import TurnRoom as TurnRoom
    from worldmtp.dynamics.imagination import acting_policy as acting_policy
    from worldmtp.dynamics.imagination import check_action_conditional as check_action_conditional
    from worldmtp.dynamics.imagination import check_horizon as check_horizon
    from worldmtp.dynamics.imagination import check_temperature as check_temperature
    from worldmtp.dynamics.imagination import imagine as imagine
    from worldmtp.dynamics.parallel import ParallelWorldModel as ParallelWorldModel
    from worldmtp.dynamics.placebo import IdentityWorldModel as IdentityWorldModel
    from worldmtp.dynamics.placebo import ShuffledWorldModel as ShuffledWorldModel
    from worldmtp.dynamics.protocol import LatentState as LatentState
    from worldmtp.dynamics.protocol import Prediction as Prediction
    from worldmtp.dynamics.protocol import StorableState as StorableState
    from worldmtp.dynamics.protocol import WorldModel as WorldModel
    from worldmtp.dynamics.states import StateTable as StateTable
    from worldmtp.dynamics.trunk import OracleWorldModel as OracleWorldModel

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "backends": "MTPWorldModel WORLD_MODELS check_backend make_world_model",
        "exact": "ExactWorldModel TokenMDP",
        "imagination": (
            "ImaginedRollout Policy TurnRoom acting_policy "
            "check_action_conditional check_horizon check_temperature imagine"
        ),
        "parallel": "ParallelWorldModel",
        "placebo": "IdentityWorldModel ShuffledWorldModel",
        "protocol": "LatentState Prediction StorableState WorldModel",
        "states": "StateTable",
        "trunk": "OracleWorldModel",
    },
)
