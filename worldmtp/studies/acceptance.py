"""How many of the heads' drafts the trunk would accept, on text that the trunk itself wrote.

Two conventions are in use and named here: *cumulative* a_k, the probability that depth k and all before it are
accepted, and *conditional* c_k = a_k / a_{k-1}. tau = 1 + sum_k a_k is the tokens a trunk forward yields.

Greedy: a draft is accepted where it is the trunk's own greedy token. Up to the first rejection the drafts equal the
trunk's text, so reading the heads teacher-forced over that text is the same as drafting. Sampled: a draft x ~ q is
accepted with probability min(1, p(x)/q(x)), on average sum_v min(p, q) (Leviathan et al. 2023, arXiv 2211.17192). What
has been accepted so far is distributed as min(p, q), not as p; on p's own samples x that is a weight min(1, q(x)/p(x)):

    a_k = E_{x ~ p} [ prod_{j<k} min(1, q_j(x_j) / p_j(x_j)) * sum_v min(p_k, q_k) ]
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding.generate import generate
from worldmtp.model import MTPModel


@torch.no_grad()
def write_texts(
    model: MTPModel, prompts: Int[Tensor, "text prompt"], num_tokens: int, generator: torch.Generator | None = None
) -> Int[Tensor, "text time"]:
    """Return prompts and what the trunk writes after them: greedily without a generator, else at temperature 1."""
    return generate(
        model,
        prompts,
        torch.ones_like(prompts),
        max_new_tokens=num_tokens,
        do_sample=generator is not None,
        draft="none",
        generator=generator,
    ).sequences


@torch.no_grad()
def greedy_acceptance(
    model: MTPModel, texts: Int[Tensor, "text time"], prompt_length: int
) -> Float[Tensor, "text later_depth"]:
    """Return the cumulative acceptance on greedy texts, for each the mean over positions.

    Those are the positions whose drafts all lie in what the trunk wrote.

    Raises:
        ValueError: the model has no drafts, or drafts with gaps; no position has as many written tokens after it.
    """
    depth = _num_drafted(model)
    roots = _roots(texts, prompt_length, depth)
    latents = model.latents(texts)
    accepted, per_depth = torch.ones(len(texts), len(roots), dtype=torch.bool, device=texts.device), []
    for k in range(2, depth + 1):
        drafts = model.logits_of(latents[k - 1][:, roots], k).argmax(dim=-1)
        accepted = accepted & (drafts == texts[:, roots + k])
        per_depth.append(accepted.float().mean(dim=1))
    return torch.stack(per_depth, dim=1)


@torch.no_grad()
def sampled_acceptance(
    model: MTPModel, texts: Int[Tensor, "text time"], prompt_length: int
) -> Float[Tensor, "text later_depth"]:
    """Return the expected acceptance at temperature 1 on the trunk's own samples; see the equation above.

    Raises:
        ValueError: as ``greedy_acceptance``.
    """
    depth = _num_drafted(model)
    roots = _roots(texts, prompt_length, depth)
    latents = model.latents(texts)
    target = model.logits_of(latents[0]).float().softmax(dim=-1)
    accepted, per_depth = torch.ones(len(texts), len(roots), device=texts.device), []
    for k in range(2, depth + 1):
        draft = model.logits_of(latents[k - 1][:, roots], k).float().softmax(dim=-1)
        true = target[:, roots + k - 1]
        per_depth.append((accepted * torch.minimum(draft, true).sum(dim=-1)).mean(dim=1))
        written = texts[:, roots + k, None]
        accepted = accepted * (draft.gather(2, written) / true.gather(2, written)).clamp_max(1.0)[..., 0]
    return torch.stack(per_depth, dim=1)


def _num_drafted(model: MTPModel) -> int:
    """Return K; drafts are accepted in a row, so there must be some, without gaps."""
    if model.config.depth < 2 or model.config.stride != 1:
        raise ValueError(
            f"depth={model.config.depth} and stride={model.config.stride}: acceptance is of the tokens 2, 3, .. ahead "
            "in a row; give the model depth=2 or more and stride=1."
        )
    return model.config.depth


def _roots(texts: Tensor, prompt_length: int, depth: int) -> Tensor:
    """Return the positions t whose tokens t+1 .. t+K were all written by the trunk."""
    first, last = prompt_length - 1, texts.shape[1] - depth
    if first >= last:
        raise ValueError(
            f"texts of {texts.shape[1]} tokens with prompts of {prompt_length} leave no position with {depth} tokens "
            "after it; write more."
        )
    return torch.arange(first, last, device=texts.device)
