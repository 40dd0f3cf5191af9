"""Candidates of every depth for parallel decoding with a beam: a whole tree of them, by heads without attention.

Depth 1 is the trunk's own distribution after a text. Depth k's tokens are the most likely by the heads: of
action-conditional ones given the path to each node, whose carry steps on with that node's token; of parallel ones the
same for every path, as they read nothing of it.

Heads that attend to earlier positions would need keys of their own for every path, and are refused.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding.beam_tree import BeamTree
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.heads.registry import available_heads, head_class
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


def check_beam_heads(model: MTPModel, widths: tuple[int, ...]) -> None:
    """Whether the model can fill a tree of these widths; one width asks nothing of the heads.

    Raises:
        ValueError: a width above the vocabulary, heads that leap over tokens, or more widths than depths.
        TypeError: heads whose depths attend to earlier positions.
    """
    config, heads = model.config, model.heads
    vocab_size = model.num_tokens
    if max(widths) > vocab_size:
        raise ValueError(f"widths={widths} ask for {max(widths)} tokens of a vocabulary of {vocab_size}; lower them.")
    if len(widths) == 1:
        return
    if config.stride != 1:
        raise ValueError(f"stride={config.stride}: these heads leap over tokens; a beam of them needs stride=1.")
    unbounded = isinstance(heads, ActionConditionalHead) and heads.unbounded
    if len(widths) > config.depth and not unbounded:
        raise ValueError(
            f"widths={widths} are of {len(widths)} depths and the model has depth={config.depth}; leave some out, or "
            "train deeper heads."
        )
    if heads.attention != "none":
        able = [name for name in available_heads() if head_class(name).attention == "none"]
        raise TypeError(
            f"{type(heads).__name__} attends to earlier positions, so every candidate path would need keys of its own; "
            f"parallel_beam takes the families {able}, or a single width, which needs no heads."
        )


def draft_candidates(
    model: MTPModel,
    tree: BeamTree,
    roots: TrunkFeatures,
    log_probs: Float[Tensor, "row vocab"],
    positions: Int[Tensor, " row"],
) -> Int[Tensor, "row node"]:
    """The tokens of all nodes, the most likely of siblings first.

    ``roots`` are the trunk's features of each text's last token, of one position; ``log_probs`` what follows it.
    """
    heads = model.heads
    levels = [log_probs.topk(tree.widths[0], dim=-1).indices]
    carry = heads.begin(roots)
    for ahead, width in enumerate(tree.widths[1:], start=1):
        depth = min(ahead + 1, model.config.depth)
        parents = levels[-1]
        if isinstance(heads, ActionConditionalHead):
            carry = carry.repeat_interleave(tree.widths[ahead - 1], dim=1)
            embeds = model.embed(parents)
            itself = torch.eye(parents.shape[1], dtype=torch.bool, device=parents.device)[None, None]
            carry = heads.forward_depth(depth, carry, embeds, itself, positions[:, None].expand_as(parents))
            latent = heads.read(depth, carry)
        else:
            itself = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=parents.device)
            latent = heads.forward_depth(depth, carry, itself, positions[:, None])
        children = model.logits_of(latent, depth).topk(width, dim=-1).indices
        levels.append(children.expand(-1, parents.shape[1], -1).flatten(1))
    return torch.cat(levels, dim=1)
