"""What cutting and clipping cost: bias of the counterfactual policy gradient in an enumerable token MDP.

    python benchmarks/gradient_bias.py

Every episode stands in one batch, weighted by its probability, so expected gradients are exact (float64) and the bias
is no estimate: |E[gradient] - policy gradient| / |policy gradient|. A random critic, then the true one; beside the bias
the variance of one episode's gradient, without the tail and with it. Of the tail a random critic says what it says of
its likeliest token, and the true one the mean over its tokens.
"""

import torch
from torch import Tensor

from worldmtp.agents.imagination.counterfactual import centred_advantages, episode_correction
from worldmtp.agents.imagination.critic import LiveTokens, live_tokens
from worldmtp.agents.ppo import likely_tokens
from worldmtp.agents.tail import live_logprobs
from worldmtp.dynamics import TokenMDP
from worldmtp.objective.policy_losses import all_action_loss_per_token, policy_loss_per_token

VOCAB, HORIZON, CLIP, ETA = 4, 4, 0.2, 0.7


def expected_gradient(
    logits: Tensor, old_logits: Tensor, mdp: TokenMDP, live: LiveTokens, advantages: Tensor, clip_coef: float
) -> Tensor:
    """Gradient at ``logits`` of the expected two-term objective, for episodes of ``old_logits``."""
    gradients = episode_gradients(logits, old_logits, mdp, live, advantages, clip_coef)
    return (mdp.episodes().probability(old_logits)[:, None, None] * gradients).sum(dim=0)


def episode_gradients(
    logits: Tensor, old_logits: Tensor, mdp: TokenMDP, live: LiveTokens, advantages: Tensor, clip_coef: float
) -> Tensor:
    """The gradient of every episode's two-term objective."""
    episodes = mdp.episodes()
    variable = logits.clone().requires_grad_(True)
    log_policy = variable.log_softmax(-1)[episodes.prefixes]
    old = old_logits.log_softmax(-1)[episodes.prefixes]
    taken = episodes.actions[..., None]
    residual = episodes.rewards.sum(1) - episode_correction(advantages, live, episodes.actions)
    old_live = live.logprobs.masked_fill(~live.mask, float("-inf"))
    now_live = live_logprobs(log_policy, live.ids, old_live)
    every = all_action_loss_per_token(now_live, old_live, advantages, clip_coef)
    sampled = policy_loss_per_token(
        log_policy.gather(2, taken)[..., 0],
        old.gather(2, taken)[..., 0],
        residual[:, None].expand_as(episodes.rewards),
        clip_coef,
    )
    loss = torch.where(episodes.step_mask, every + sampled, 0.0).sum(dim=1)
    each = torch.eye(len(loss), dtype=loss.dtype)
    return torch.autograd.grad(-loss, variable, each, is_grads_batched=True)[0]


def variance(logits: Tensor, mdp: TokenMDP, live: LiveTokens, advantages: Tensor) -> float:
    """Variance of one episode's gradient on policy, added up over the parameters."""
    gradients = episode_gradients(logits, logits, mdp, live, advantages, CLIP)
    weights = mdp.episodes().probability(logits)[:, None, None]
    mean = (weights * gradients).sum(dim=0)
    return float((weights * (gradients - mean) ** 2).sum())


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
            live = live_tokens(likely_tokens(old, max_live), episodes.step_mask, 0.0, tail=False)
            q_values = critic[episodes.prefixes].gather(2, live.ids)
            ours = expected_gradient(logits, logits, mdp, live, ETA * centred_advantages(q_values, live), CLIP)
            uncut = (old.exp() * critic[episodes.prefixes]).sum(-1, keepdim=True)
            usual = expected_gradient(logits, logits, mdp, live, ETA * (q_values - uncut), CLIP)
            print(
                f"{name} critic, {max_live} of {VOCAB} live: ours {relative(ours, truth):.1e}, "
                f"tail dropped from the sum {relative(usual, truth):.1e}"
            )
        for max_live in (4, 3, 2, 1):
            outside = old.argsort(dim=-1, descending=True)[..., max_live:]
            said, probs = critic[episodes.prefixes].gather(2, outside), old.gather(2, outside).exp()
            of_tail = (probs * said).sum(-1) / probs.sum(-1).clamp_min(1e-300)
            if name == "random":
                of_tail = said[..., :1].sum(-1)
            variances, bias = [], 0.0
            for tail in (False, True):
                live = live_tokens(likely_tokens(old, max_live), episodes.step_mask, 0.0, tail=tail)
                q_values = critic[episodes.prefixes].gather(2, live.without_tail().ids)
                if tail:
                    q_values = torch.cat([q_values, of_tail[..., None]], dim=-1)
                eta = ETA if name == "random" else 1.0
                advantages = eta * centred_advantages(q_values, live)
                variances.append(variance(logits, mdp, live, advantages))
                bias = relative(expected_gradient(logits, logits, mdp, live, advantages, CLIP), truth)
            cut, whole = variances
            print(
                f"{name} critic, {max_live} of {VOCAB} live: with the tail {bias:.1e}, variance of an episode's "
                f"gradient {cut:.2f} without the tail, {whole:.2f} with it"
            )
    direction = randn()
    for size in (0.05, 0.1, 0.2, 0.3):
        moved = logits + size * direction
        live = live_tokens(likely_tokens(old, VOCAB), episodes.step_mask, 0.0, tail=False)
        advantages = centred_advantages(true_critic[episodes.prefixes].gather(2, live.ids), live)
        clipped = expected_gradient(moved, logits, mdp, live, advantages, CLIP)
        unclipped = expected_gradient(moved, logits, mdp, live, advantages, 1e9)
        kl = (old.exp() * (old - moved.log_softmax(-1)[episodes.prefixes])).sum(-1).mean()
        change = relative(clipped, unclipped)
        print(f"after a move of KL {float(kl):.4f} a token: clipping changes the gradient by {change:.3f}")


if __name__ == "__main__":
    main()
