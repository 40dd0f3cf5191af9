"""Held-out evaluation: the same prompts every time, answered greedily and by sampling, and read by all depths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from worldmtp.agents.forward import episode_returns
from worldmtp.agents.imagined_returns import Acting
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import collect_rollout
from worldmtp.agents.trajectory import Rollout
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.model import MTPModel


@dataclass(frozen=True)
class Evaluation:
    """Answers to the held-out prompts; ``greedy`` and ``sampled`` have one row a prompt, in the same order.

    ``components`` are the means of the greedy answers' components, by name.
    """

    greedy: Rollout
    sampled: Rollout
    components: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Means over prompts."""
        return {
            "eval/exact": float(self.greedy.exact.float().mean()),
            "eval/exact_sampled": float(self.sampled.exact.float().mean()),
            "eval/score": float(episode_returns(self.greedy).mean()),
            "eval/score_sampled": float(episode_returns(self.sampled).mean()),
            "eval/length_mean": self.greedy.num_tokens / len(self.greedy),
            "eval/truncated_fraction": float(self.greedy.truncated.any(dim=1).float().mean()),
            **{f"eval/components/{name}": mean for name, mean in self.components.items()},
        }


class Evaluator:
    """Answers fixed held-out prompts. Sampling starts from ``seed`` each time, so evaluating changes nothing later."""

    def __init__(self, env: TextVectorEnv, examples: Sequence[Example], temperature: float, seed: int) -> None:
        if env.num_envs != len(examples):
            raise ValueError(f"the environment has {env.num_envs} rows for {len(examples)} prompts; make one a prompt.")
        self._env = env
        self.examples = tuple(examples)
        self._temperature = temperature
        self._seed = seed

    @property
    def temperature(self) -> float:
        """That of the sampled answers."""
        return self._temperature

    def acting(self, return_range: tuple[float, float]) -> Acting:
        """The policy that wrote the sampled answers, and its turns."""
        return Acting.of(self._env, self._temperature, return_range)

    @torch.no_grad()
    def run(self, model: MTPModel) -> Evaluation:
        """Answer every prompt twice, with the ids that the environment's tokenizer has.

        Raises:
            ValueError: the model's vocabulary is smaller.
        """
        model.limit_tokens(self._env.tokenizer.vocab_size)
        options = {"split": "heldout", "prompts": list(self.examples)}
        policy = TrunkPolicy(model, self._temperature)
        self._env.scorer.take_components()  # those of earlier answers
        greedy = collect_rollout(self._env, policy, None, options).to(model.device)
        components = self._env.scorer.take_components()
        generator = torch.Generator(device=model.device).manual_seed(self._seed)
        policy = TrunkPolicy(model, self._temperature)
        sampled = collect_rollout(self._env, policy, generator, options).to(model.device)
        return Evaluation(greedy, sampled, components)
