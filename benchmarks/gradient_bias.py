"""What cutting and clipping cost: bias of the counterfactual policy gradient in an enumerable token MDP.

    python benchmarks/gradient_bias.py

Every episode stands in one batch, weighted by its probability, so expected gradients are exact (float64) and the bias
is no estimate: |E[gradient] - policy gradient| / |policy gradient|. A random critic, then the true one.
"""

import torch
from torch import Tensor

from worldmtp.agents.imagination.counterfactual import centred_advantages, episode_correction
from worldmtp.agents.imagination.critic import LiveTokens, live_tokens
from worldmtp.agents.ppo import all_action_loss_per_token, likely_tokens, policy_loss_per_token
from worldmtp.dynamics import TokenMDP

VOCAB, HORIZON, CLIP, ETA = 4, 4, 0.2, 0.7


def expected_gradient(
    logits: Tensor, old_logits: Tensor, mdp: TokenMDP, live: LiveTokens, advantages: Tensor, clip_coef: float
) -> Tensor:
    """Gradient at ``logits`` of the expected two-term objective, for episodes of ``old_logits``."""
    episodes = mdp.episodes()
    variable = logits.clone().requires_grad_(True)
    log_policy = variable.log_softmax(-1)[episodes.prefixes]
    old = old_logits.log_softmax(-1)[episodes.prefixes]
    taken = episodes.actions[..., None]
    residual = episodes.rewards.sum(1) - episode_correction(advantages, live, episodes.actions)
    every = all_action_loss_per_token(log_policy.gather(2, live.ids), live.logprobs, advantages, clip_coef)
    sampled = policy_loss_per_token(
        log_policy.gather(2, taken)[..., 0],
        old.gather(2, taken)[..., 0],
        residual[:, None].expand_as(episodes.rewards),
        clip_coef,
    )
    loss = torch.where(episodes.step_mask, every + sampled, 0.0).sum(dim=1)
    weighted = -(episodes.probability(old_logits) * loss).sum()
    return torch.autograd.grad(weighted, variable)[0]


def relative(gradient: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((gradient - truth).norm() / truth.norm())


def main() -> None:
    """Print the biases."""
    generator = torch.Generator().manual_seed(0)
    num_prefixes = sum(VOCAB**length for length in range(HORIZON))

    def randn() -> Tensor:
        return torch.randn((num_prefixes, VOCAB), generator=generator, dtype=torch.float64)

    mdp, logits, random_critic = TokenMDP(VOCAB, HORIZON, randn()), randn(), randn()
    episodes, truth = mdp.episodes(), mdp.policy_gradient(logits)
    old, true_critic = logits.log_softmax(-1)[episodes.prefixes], mdp.action_values(logits)
    print(f"token MDP of {VOCAB} tokens, {HORIZON} steps, {len(episodes.rewards)} episodes")
    for name, critic in (("random", random_critic), ("true", true_critic)):
        for max_live in (4, 3, 2):
            live = live_tokens(likely_tokens(old, max_live), episodes.step_mask, 0.0)
            q_values = critic[episodes.prefixes].gather(2, live.ids)
            ours = expected_gradient(logits, logits, mdp, live, ETA * centred_advantages(q_values, live), CLIP)
            uncut = (old.exp() * critic[episodes.prefixes]).sum(-1, keepdim=True)
            usual = expected_gradient(logits, logits, mdp, live, ETA * (q_values - uncut), CLIP)
            print(
                f"{name} critic, {max_live} of {VOCAB} live: ours {relative(ours, truth):.1e}, "
                f"tail dropped from the sum {relative(usual, truth):.1e}"
            )
    direction = randn()
    for size in (0.05, 0.1, 0.2, 0.3):
        moved = logits + size * direction
        live = live_tokens(likely_tokens(old, VOCAB), episodes.step_mask, 0.0)
        advantages = centred_advantages(true_critic[episodes.prefixes].gather(2, live.ids), live)
        clipped = expected_gradient(moved, logits, mdp, live, advantages, CLIP)
        unclipped = expected_gradient(moved, logits, mdp, live, advantages, 1e9)
        kl = (old.exp() * (old - moved.log_softmax(-1)[episodes.prefixes])).sum(-1).mean()
        change = relative(clipped, unclipped)
        print(f"after a move of KL {float(kl):.4f} a token: clipping changes the gradient by {change:.3f}")


if __name__ == "__main__":
    main()
