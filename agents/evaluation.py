"""Evaluation on held-out prompts: answers to the same ones every time, and what the model predicted of them.

On-policy text and its teacher-forced heads are all that the predictions need: one trunk forward and one pass of each
depth. Full distributions are reduced one depth at a time; nothing of size vocabulary is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.agents.acting_search import make_search_policy
from worldmtp.agents.action_masks import forbid
from worldmtp.agents.advantages import monte_carlo_returns
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.policies import ActingPolicy, TrunkPolicy
from worldmtp.agents.rollout import Rollout, collect_rollout, episode_returns, state_index
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import SearchPolicy
from worldmtp.agents.world_search import WorldSearchPolicy
from worldmtp.dynamics import WorldModel, imagine
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.model.precision import full_precision
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class Evaluation:
    """Answers to the held-out prompts; ``greedy`` and ``sampled`` have one row a prompt, in the same order.

    ``components`` are the means of the greedy answers' components, by name. Where a search acted, ``policy`` has the
    answers that the policy gave by itself, and ``trunk_tokens`` says what the greedy answers took of the trunk, a
    prompt.
    """

    greedy: Rollout
    sampled: Rollout
    components: Mapping[str, float] = field(default_factory=dict)
    policy: "Evaluation | None" = None
    trunk_tokens: float | None = None

    @property
    def own(self) -> Rollout:
        """The sampled answers of the policy itself, which its heads are measured on."""
        return self.sampled if self.policy is None else self.policy.sampled

    def metrics(self) -> dict[str, float]:
        """Return means over prompts."""
        metrics = {
            "eval/exact": float(self.greedy.exact.float().mean()),
            "eval/exact_sampled": float(self.sampled.exact.float().mean()),
            "eval/score": float(episode_returns(self.greedy).mean()),
            "eval/score_sampled": float(episode_returns(self.sampled).mean()),
            "eval/length_mean": self.greedy.num_tokens / len(self.greedy),
            "eval/truncated_fraction": float(self.greedy.truncated.any(dim=1).float().mean()),
            **{f"eval/components/{name}": mean for name, mean in self.components.items()},
        }
        if self.trunk_tokens is not None:
            metrics["eval/trunk_tokens"] = self.trunk_tokens
        if self.policy is not None:
            beside = self.policy.metrics()
            for name in ("exact", "exact_sampled", "score", "score_sampled", "trunk_tokens"):
                metrics[f"eval/policy/{name}"] = beside[f"eval/{name}"]
        return metrics


@dataclass(frozen=True)
class EvaluationSearch:
    """How evaluations search, and the seed of what is drawn inside the trees."""

    how: ActingSearch
    seed: int


class Evaluator:
    """Answers fixed held-out prompts. Sampling starts from ``seed`` each time, so evaluating changes nothing later.

    With a ``search`` tokens are chosen by it: the best one where answers are greedy, and a draw from what it makes of
    the policy where they are sampled. The policy's own answers come beside them.
    """

    def __init__(
        self,
        env: TextVectorEnv,
        examples: Sequence[Example],
        temperature: float,
        seed: int,
        search: EvaluationSearch | None = None,
    ) -> None:
        if env.num_envs != len(examples):
            raise ValueError(f"the environment has {env.num_envs} rows for {len(examples)} prompts; make one a prompt.")
        self._env = env
        self.examples = tuple(examples)
        self._temperature = temperature
        self._seed, self._search = seed, search

    @property
    def temperature(self) -> float:
        """The temperature of the sampled answers."""
        return self._temperature

    def acting(self, return_range: tuple[float, float]) -> Acting:
        """Return the policy that wrote the sampled answers, and its turns."""
        return Acting.of(self._env, self._temperature, return_range)

    @torch.no_grad()
    def run(self, model: MTPModel) -> Evaluation:
        """Answer every prompt twice, with the ids that the environment's tokenizer has; by search twice more.

        Raises:
            ValueError: the model's vocabulary is smaller.
        """
        model.limit_tokens(self._env.tokenizer.vocab_size)
        own = self._answered(model, lambda: TrunkPolicy(model, self._temperature))
        if self._search is None:
            return own
        own = replace(own, trunk_tokens=_tokens_a_prompt(own.greedy))
        how, generator = self._search.how, torch.Generator().manual_seed(self._search.seed)
        policies: list[SearchPolicy | WorldSearchPolicy] = []

        def searching() -> ActingPolicy:
            policies.append(make_search_policy(how, model, self._env, self._temperature, generator))
            return policies[-1]

        found = self._answered(model, searching)
        spent = policies[0].tokens_read / len(self.examples)
        return replace(found, policy=own, trunk_tokens=_tokens_a_prompt(found.greedy) + spent)

    def _answered(self, model: MTPModel, make_policy: Callable[[], ActingPolicy]) -> Evaluation:
        """Return greedy answers, then sampled ones, each by a policy of its own."""
        options = {"split": "heldout", "prompts": list(self.examples)}
        generator = torch.Generator(device=model.device).manual_seed(self._seed)
        self._env.scorer.take_components()  # those of earlier answers
        greedy = collect_rollout(self._env, make_policy(), None, options)
        components = self._env.scorer.take_components()
        sampled = collect_rollout(self._env, make_policy(), generator, options)
        return Evaluation(greedy.to(model.device), sampled.to(model.device), components)


def _tokens_a_prompt(rollout: Rollout) -> float:
    """Return the tokens that a trunk with a cache reads of these texts, a mean over them."""
    return float(rollout.attention_mask.sum()) / len(rollout)


@dataclass(frozen=True)
class DepthPredictions:
    """What depth k predicted of token i, at position i - k; NaN (ids: 0) where that position is not in the text.

    Depth 1 is the trunk, the policy that wrote the text, so ``logprobs[..., 0]`` is the chain. ``top_ids`` are the
    likeliest tokens, as many as were asked for.
    """

    logprobs: Float[Tensor, "batch time depth"]
    entropies: Float[Tensor, "batch time depth"]
    top1_ids: Int[Tensor, "batch time depth"]
    top1_probs: Float[Tensor, "batch time depth"]
    top_ids: Int[Tensor, "batch time depth top"]
    top_probs: Float[Tensor, "batch time depth top"]


@torch.no_grad()
def depth_predictions(
    model: MTPModel,
    rollout: Rollout,
    temperature: float,
    features: TrunkFeatures | None = None,
    num_top: int = 0,
) -> DepthPredictions:
    """Return what all depths predicted of a rollout's tokens, at the temperature of acting, among what was allowed.

    ``features``, the trunk's of this rollout's text, save its forward where they are at hand.
    """
    latents = model.latents(rollout.input_ids, rollout.attention_mask, features=features)
    allowed = _allowed_in_place(rollout)
    per_depth = [
        _read_depth(model, latent, rollout, depth, temperature, allowed, num_top)
        for depth, latent in enumerate(latents, start=1)
    ]
    return DepthPredictions(*(torch.stack(values, dim=2) for values in zip(*per_depth, strict=True)))


def _allowed_in_place(rollout: Rollout) -> Bool[Tensor, "batch time known_vocab"] | None:
    """Return which tokens might stand at each place: any, but where the policy chose among some; None without masks."""
    if not rollout.is_masked or rollout.allowed is None:
        return None
    index = rollout.action_index[..., None].expand_as(rollout.allowed)
    allowed = rollout.allowed | ~rollout.step_mask[..., None]
    whole = allowed.new_ones((*rollout.input_ids.shape, allowed.shape[-1]))
    # Steps that are not there write True to index 0, a prompt token.
    return whole.scatter(1, index, allowed)


def _read_depth(
    model: MTPModel,
    latent: Tensor,
    rollout: Rollout,
    depth: int,
    temperature: float,
    allowed: Bool[Tensor, "batch time known_vocab"] | None,
    num_top: int,
) -> tuple[Tensor, ...]:
    logits = full_precision(model.logits_of(latent, depth))[:, :-depth] / temperature
    predicted = forbid(logits, None if allowed is None else allowed[:, depth:]).log_softmax(dim=-1)
    realized = rollout.input_ids[:, depth:]
    top1_probs, top1_ids = predicted.exp().max(dim=-1)
    top_probs, top_ids = predicted.exp().topk(min(num_top, predicted.shape[-1]), dim=-1)
    known = rollout.attention_mask[:, depth:]

    def in_place(values: Tensor, missing: float | int) -> Tensor:
        shape = (*rollout.input_ids.shape, *values.shape[2:])
        whole = torch.full(shape, missing, dtype=values.dtype, device=values.device)
        whole[:, depth:] = torch.where(known.view(*known.shape, *[1] * (values.dim() - 2)), values, missing)
        return whole

    return (
        in_place(predicted.gather(2, realized[..., None])[..., 0], float("nan")),
        in_place(entropy_per_token(predicted), float("nan")),
        in_place(top1_ids, 0),
        in_place(top1_probs, float("nan")),
        in_place(top_ids, 0),
        in_place(top_probs, float("nan")),
    )


@dataclass(frozen=True)
class RootImaginations:
    """What was imagined at each state acted in, at the last token of its prefix; NaN (ids: 0) elsewhere.

    Imagined and realized return-to-go, and the most likely imagined continuation with its probabilities: NaN from the
    end of the policy's turn on, since what comes then is the environment's. ``top_ids`` are the likeliest tokens at
    each of its steps, as many as were asked for.
    """

    imagined: Float[Tensor, "batch time"]
    realized: Float[Tensor, "batch time"]
    tokens: Int[Tensor, "batch time horizon"]
    token_probs: Float[Tensor, "batch time horizon"]
    top_ids: Int[Tensor, "batch time horizon top"]
    top_probs: Float[Tensor, "batch time horizon top"]


@torch.no_grad()
def root_imaginations(
    world_model: WorldModel[Any] | None,
    acting: Acting,
    rollout: Rollout,
    horizon: int,
    num_rollouts: int,
    ppo: PPOConfig,
    generator: torch.Generator,
    features: TrunkFeatures | None = None,
    num_top: int = 0,
) -> RootImaginations:
    """Imagine from every state of a rollout: the mean of ``num_rollouts`` T_horizon, and one greedy continuation.

    Without a world model only what was realized is known. ``features``, the trunk's of this rollout's text, save its
    forward where they are at hand.
    """
    rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
    at = (rows, state_index(rollout)[rows, steps])
    to_go = monte_carlo_returns(rollout, ppo)

    def in_place(values: Tensor, missing: float | int) -> Tensor:
        shape = (*rollout.input_ids.shape, *values.shape[1:])
        whole = torch.full(shape, missing, dtype=values.dtype, device=values.device)
        whole[at] = values
        return whole

    realized = in_place(to_go[rows, steps], float("nan"))
    if world_model is None:
        unknown = torch.full_like(realized, float("nan"))
        tokens = rollout.input_ids.new_zeros((*rollout.input_ids.shape, horizon))
        unseen = torch.full_like(tokens, float("nan"), dtype=unknown.dtype)
        none = tokens[..., None].expand(*tokens.shape, num_top), unseen[..., None].expand(*tokens.shape, num_top)
        return RootImaginations(unknown, realized, tokens, unseen, *none)
    root = acted_states(world_model, rollout, features)
    branched = torch.arange(len(rows), device=rows.device).repeat_interleave(num_rollouts)
    turn = acting.room(rollout, rows, steps)
    room = turn.select(branched) if turn is not None else None
    rolled = imagine(world_model, root.select(branched), horizon, acting.policy, generator, room)
    expanded = acting.returns(rolled, ppo.gamma)[:, -1]
    tops: list[tuple[Tensor, Tensor]] = []

    def watched(logits: Float[Tensor, "state vocab"]) -> Float[Tensor, "state vocab"]:
        log_policy = acting.policy(logits)
        probs, ids = log_policy.exp().topk(min(num_top, log_policy.shape[-1]), dim=-1)
        tops.append((ids, probs))
        return log_policy

    likeliest = imagine(world_model, root, horizon, watched, None, turn)
    top_ids, top_probs = (torch.stack(found, dim=1) for found in zip(*tops, strict=True))
    in_turn = likeliest.in_turn[..., None]
    return RootImaginations(
        imagined=in_place(expanded.view(-1, num_rollouts).mean(dim=1).to(to_go.dtype), float("nan")),
        realized=realized,
        tokens=in_place(torch.where(likeliest.in_turn, likeliest.actions, 0), 0),
        token_probs=in_place(torch.where(likeliest.in_turn, likeliest.logprobs.exp(), float("nan")), float("nan")),
        top_ids=in_place(torch.where(in_turn, top_ids, 0), 0),
        top_probs=in_place(torch.where(in_turn, top_probs, float("nan")), float("nan")),
    )
