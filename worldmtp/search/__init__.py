"""Planning: Monte-Carlo tree search in torch over any world model, by Gumbel MuZero's rules or by PUCT."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.search.config import SearchConfig as SearchConfig
    from worldmtp.search.conversation import ConversationDynamics as ConversationDynamics
    from worldmtp.search.policies import SearchedPolicy as SearchedPolicy
    from worldmtp.search.policies import gumbel_muzero_policy as gumbel_muzero_policy
    from worldmtp.search.policies import muzero_policy as muzero_policy
    from worldmtp.search.policies import plan as plan
    from worldmtp.search.search import search as search
    from worldmtp.search.tree import SearchTree as SearchTree
    from worldmtp.search.turns import TurnWorldModel as TurnWorldModel

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "config": "SearchConfig",
        "conversation": "ConversationDynamics",
        "policies": "SearchedPolicy gumbel_muzero_policy muzero_policy plan",
        "search": "search",
        "tree": "SearchTree",
        "turns": "TurnWorldModel",
    },
)
