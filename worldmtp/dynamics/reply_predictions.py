"""What the model of replies foretold of real turns, each by the one member that has not seen the conversation.

Depth f is the f-th token of a reply, which the model predicts f tokens ahead, from the end of the policy's turn; the
end of the reply is one more token. So these numbers stand beside those of the policy's own tokens, by depth.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.turns import Turns
from worldmtp.model.world_heads import binned_mean


@dataclass(frozen=True)
class ReplyPredictions:
    """The turns there are, conversation after conversation, and what was foretold of each.

    ``tokens`` is what was replied: token ids, the end (the size of the vocabulary), then ``NOTHING``, where the other
    arrays of the same shape mean nothing. ``logprob`` is of that token, ``top1`` the most probable one.
    """

    conversation: Int[Tensor, " turn"]
    tokens: Int[Tensor, "turn place"]
    logprob: Float[Tensor, "turn place"]
    top1: Int[Tensor, "turn place"]
    top1_prob: Float[Tensor, "turn place"]
    rewards: Float[Tensor, " turn"]
    foretold_rewards: Float[Tensor, " turn"]
    ended: Bool[Tensor, " turn"]
    end_prob: Float[Tensor, " turn"]


@torch.no_grad()
def out_of_fold(model: ReplyModel, turns: Turns, folds: Int[Tensor, " episode"]) -> ReplyPredictions:
    """Return what the member that has not trained on it foretells of each conversation.

    ``folds`` are the conversations' numbers in the replay, which decide who trains on them.
    """
    said, real = model.foretold(turns), turns.mask
    conversation = torch.arange(len(turns), device=turns.device)[:, None].expand(real.shape)[real]
    turn = torch.arange(len(conversation), device=turns.device)
    member = folds[conversation] % model.num_members
    log_tokens = said.log_tokens[member, turn]
    best, top1 = log_tokens.max(dim=2)
    return ReplyPredictions(
        conversation=conversation,
        tokens=said.classes,
        logprob=log_tokens.gather(2, said.classes.clamp_min(0)[..., None])[..., 0],
        top1=top1,
        top1_prob=best.exp(),
        rewards=turns.rewards[real],
        foretold_rewards=binned_mean(said.log_rewards[member, turn], model.reward_bins),
        ended=turns.ended[real],
        end_prob=said.log_ends[member, turn, 1].exp(),
    )
