"""Sources of tokens whose laws are known: the truth beside what a model predicts. Public names load on first use."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.exact.goal_texts import GoalTexts as GoalTexts
    from worldmtp.exact.source import Source as Source
    from worldmtp.exact.source import TrueSplit as TrueSplit
    from worldmtp.exact.source import entropy as entropy
    from worldmtp.exact.source import stationary as stationary
    from worldmtp.exact.sources import block_hmm as block_hmm
    from worldmtp.exact.sources import bounded_dyck as bounded_dyck
    from worldmtp.exact.sources import cycle as cycle
    from worldmtp.exact.sources import hidden_markov as hidden_markov
    from worldmtp.exact.sources import markov_chain as markov_chain
    from worldmtp.exact.sources import mess3 as mess3
    from worldmtp.exact.sources import path_star as path_star
    from worldmtp.exact.sources import text_rows as text_rows
    from worldmtp.exact.sources import token_mdp as token_mdp
    from worldmtp.exact.sources import two_senses as two_senses
    from worldmtp.exact.sources import two_streams as two_streams

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "goal_texts": "GoalTexts",
        "source": "Source TrueSplit entropy stationary",
        "sources": "block_hmm bounded_dyck cycle hidden_markov markov_chain mess3 path_star text_rows token_mdp "
        "two_senses two_streams",
    },
)
