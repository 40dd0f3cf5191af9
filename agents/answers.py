"""Ways to answer held-out prompts beside greedy and sampled, and what each costs in tokens of the trunk.

**Trunk tokens** are what a trunk with a cache reads: a text's tokens once each, a prompt once for all its answers, and
a token for each simulation of a search over the trunk, with the replies that are read in it. Simulations over heads are
none, and their verification a token for each place of the lines that are verified; ``seconds`` counts everything.
A beam of N texts is N texts as long as the one that is found, so that it costs about what the best of N draws does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.agents.acting_search import check_search, make_search_policy
from worldmtp.agents.policies import ActingPolicy, TrunkPolicy
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.rollout import Rollout, action_mask, collect_rollout, episode_returns
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import OnPlan, SearchPolicy
from worldmtp.agents.search_verification import VerifiedShare
from worldmtp.decoding import parallel_beam
from worldmtp.dynamics import WorldModel
from worldmtp.dynamics.conversations import ReplySource
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.model.world_heads import binned_mean
from worldmtp.search import SearchedPolicy
from worldmtp.search.explain import Planned, Spoken, TreeNode, tree_of


@dataclass(frozen=True)
class Answers:
    """An answer to each prompt; ``trunk_tokens`` and ``seconds`` are means over prompts.

    ``verified`` says what the trunk's verification of a search has changed; None where nothing was verified.
    """

    way: str
    exact: Bool[Tensor, " prompt"]
    score: Float[Tensor, " prompt"]
    trunk_tokens: float
    seconds: float
    verified: VerifiedShare | None = None


@dataclass(frozen=True)
class ExplainedAnswers:
    """Answers by a search, with the texts that they make, and each text's plans, a token each."""

    answers: Answers
    texts: tuple[Spoken, ...]
    plans: tuple[tuple[Planned, ...], ...]


@dataclass(frozen=True)
class Answering:
    """The prompts, who answers them, and the draws."""

    model: MTPModel
    env: TextVectorEnv
    examples: Sequence[Example]
    temperature: float
    seed: int
    replies: ReplySource | None = None
    """The model of replies that a search over ``replies`` asks."""

    def greedy(self) -> Answers:
        """Return the likeliest answers, token by token."""
        return self._by(TrunkPolicy(self.model, self.temperature), "greedy", None)[0]

    def sampled(self) -> Answers:
        """Return one draw a prompt."""
        return self._by(TrunkPolicy(self.model, self.temperature), "sampled", self._generator())[0]

    def check_search(self, how: ActingSearch) -> None:
        """Do nothing if the model can be searched so.

        Raises:
            TypeError, ValueError: as ``acting_search.check_search``.
        """
        check_search(how, self.model, self.env, self.replies is not None)

    def searched(self, how: ActingSearch, world_model: WorldModel[Any] | None = None) -> Answers:
        """Return the best token of a search, token by token; ``world_model`` comes in place of the one that is named.

        Raises:
            TypeError: the heads are blind to actions.
            ValueError: there is nobody to ask for replies.
        """
        return self._searched(how, world_model, None)[0]

    def explained(self, how: ActingSearch) -> ExplainedAnswers:
        """Return the answers of ``searched`` with every plan that was made on the way; no trunk reads more for it.

        Raises:
            TypeError, ValueError: as ``searched``.
        """
        trees: list[list[tuple[tuple[TreeNode, ...], float]]] = [[] for _ in self.examples]

        def keep(rows: Int[np.ndarray, " row"], found: SearchedPolicy) -> None:
            for place, row in enumerate(rows.tolist()):
                trees[row].append((tree_of(found, place), float(found.value[place])))

        answers, rollout = self._searched(how, None, keep)
        rollout = rollout.to("cpu")
        texts, plans = [], []
        for row, lengths in enumerate(rollout.attention_mask.sum(dim=1).tolist()):
            ids = tuple(rollout.input_ids[row, :lengths].tolist())
            own = action_mask(rollout)[row, :lengths].tolist()
            text = Spoken(ids, tuple(not is_own for is_own in own))
            places = [place for place, is_own in enumerate(own) if is_own]
            texts.append(text)
            plans.append(
                tuple(
                    Planned(Spoken(ids[:place], text.is_heard[:place]), tree, ids[place : place + 1], value)
                    for place, (tree, value) in zip(places, trees[row], strict=True)
                )
            )
        return ExplainedAnswers(answers, tuple(texts), tuple(plans))

    def _searched(
        self, how: ActingSearch, world_model: WorldModel[Any] | None, on_plan: OnPlan | None
    ) -> tuple[Answers, Rollout]:
        parts = how, self.model, self.env, self.temperature, self._generator(), self.replies
        policy = make_search_policy(*parts, world_model, on_plan)
        found, rollout = self._by(policy, how.way, None)
        verified = policy.verified_share if isinstance(policy, SearchPolicy) else None
        tokens = found.trunk_tokens + policy.tokens_read / len(found.score)
        return replace(found, trunk_tokens=tokens, verified=verified), rollout

    def check_beam(self, number: int) -> None:
        """Do nothing if answers can be searched for by their log-probability.

        Raises:
            ValueError: no text is to be kept; or a world replies, so that no answer is written at once.
        """
        if number < 1:
            raise ValueError(f"a beam of {number} must keep at least 1 text.")
        if not self.env.eos_terminates:
            raise ValueError(
                f"a beam of {number} writes whole answers, and in this environment EOS does not end the text: a world "
                "replies, or the task may end it before. Leave the beam out."
            )

    def beam(self, number: int) -> Answers:
        """Return the likeliest answers of a beam search that keeps ``number`` texts; nothing is drawn.

        Raises:
            ValueError: as ``check_beam``.
        """
        self.check_beam(number)
        obs, infos = self.env.reset(options=self._options)
        if "action_mask" in infos:
            raise ValueError(f"a beam of {number} knows no action masks, and this environment has some.")
        start = time.perf_counter()
        lengths = obs["length"][:, 0]
        ids = torch.from_numpy(obs["tokens"][:, : int(lengths.max())].copy()).to(self.model.device)
        mask = torch.arange(ids.shape[1]) < torch.from_numpy(lengths.copy())[:, None]
        found = parallel_beam(
            self.model,
            ids,
            mask.to(ids.device),
            widths=(min(number, self.env.tokenizer.vocab_size),),
            num_beams=number,
            max_new_tokens=self.env.dataset.max_new,
            eos_token_id=self.env.tokenizer.eos_id,
        )
        written = found.sequences[:, ids.shape[1] :].cpu()
        seconds = (time.perf_counter() - start) / len(written)
        rollout = self._rollout(_Written(written), None)
        tokens = float(rollout.prompt_length.sum() + number * rollout.num_tokens) / len(rollout)
        scores = episode_returns(rollout).cpu()
        return Answers(f"beam of {number}", rollout.exact.cpu(), scores, tokens, seconds)

    def best_of(self, number: int) -> tuple[Answers, Answers]:
        """Return the best of so many draws, by the task's own scorer, and by the rewards that the model foresees.

        Raises:
            ValueError: the number is less than 1.
        """
        if number < 1:
            raise ValueError(f"best of {number}: at least 1 answer must be drawn.")
        start, generator = time.perf_counter(), self._generator()
        drawn = [self._rollout(TrunkPolicy(self.model, self.temperature), generator) for _ in range(number)]
        scores = torch.stack([episode_returns(rollout).cpu() for rollout in drawn])
        foreseen = torch.stack([foreseen_returns(self.model, rollout).cpu() for rollout in drawn])
        exact = torch.stack([rollout.exact.cpu() for rollout in drawn])
        prompts = drawn[0].prompt_length
        written = sum((rollout.attention_mask.sum(dim=1) - prompts).sum() for rollout in drawn)
        cost = float(prompts.sum() + written) / len(prompts)
        seconds = (time.perf_counter() - start) / len(prompts)

        def chosen(by: Tensor, way: str) -> Answers:
            best = by.argmax(dim=0, keepdim=True)
            name = f"best of {number}, {way}"
            return Answers(name, exact.gather(0, best)[0], scores.gather(0, best)[0], cost, seconds)

        return chosen(scores, "by the task's scorer"), chosen(foreseen, "by the model's own rewards")

    def _by(self, policy: ActingPolicy, way: str, generator: torch.Generator | None) -> tuple[Answers, Rollout]:
        start = time.perf_counter()
        rollout = self._rollout(policy, generator)
        seconds = (time.perf_counter() - start) / len(rollout)
        tokens = int(rollout.attention_mask.sum())
        scores = episode_returns(rollout).cpu()
        return Answers(way, rollout.exact.cpu(), scores, tokens / len(rollout), seconds), rollout

    def _rollout(self, policy: ActingPolicy, generator: torch.Generator | None) -> Rollout:
        return collect_rollout(self.env, policy, generator, self._options).to(self.model.device)

    @property
    def _options(self) -> dict[str, Any]:
        return {"split": "heldout", "prompts": list(self.examples)}

    def _generator(self) -> torch.Generator:
        return torch.Generator(device=self.model.device).manual_seed(self.seed)


class _Written:
    """An ``ActingPolicy`` of answers that were written before: it says their tokens, one after another."""

    def __init__(self, answers: Int[Tensor, "row token"]) -> None:
        self._answers = answers

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return the next token of each row; rows that have ended get their last."""
        place = torch.from_numpy((obs["length"] - obs["prompt_length"])[:, 0]).clamp_max(self._answers.shape[1] - 1)
        return ActedStep(self._answers.gather(1, place[:, None])[:, 0], torch.zeros(len(place)))


@torch.no_grad()
def foreseen_returns(model: MTPModel, rollout: Rollout) -> Float[Tensor, " batch"]:
    """Return what the model's reward head reads off each action's own token, summed over the episode."""
    hidden = model.trunk_features(rollout.input_ids, rollout.attention_mask).post_norm
    rewards = binned_mean(model.world_heads(hidden).reward_logits, model.world_heads.reward_bins)
    return torch.where(rollout.step_mask, rewards.gather(1, rollout.action_index), 0.0).sum(dim=1)
