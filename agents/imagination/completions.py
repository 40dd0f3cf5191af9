"""Imagined answers: likely tokens completed to the end of the answer and scored by the task itself.

For a live token a of a state s_t, the answer so far and a are completed greedily and by R draws, by the policy that a
world model, or the trunk, foresees. An answer y has the probability

    q(y) = product of the probabilities of its tokens after a,

and the task's scorer says r(y). Over the *distinct* answers among the 1 + R, the sum of q is how much is known of what
may follow. The sum of q r, where scores are not negative, is a lower bound on Q(s_t, a), as far as the q are right, and
waits for no critic. A critic reads both, beside the greedy score and the mean of the draws (``completion_columns``).

**Why it stays unbiased.** Prefix, candidate and this module's own random numbers are all that a completion depends on:
the token that was taken is completed anew like any other, and never by what the episode went on to write. Equal
prefixes of one prompt are completed once for all of their episodes, which makes the errors of Q^ alike and leaves them
independent of what each episode does later. A subset of states is the first n of an episode that have a choice: whether
a state is one of them is decided by the states up to it. "Every other state", or "n of them at random", would depend on
how long the episode turned out to be.

The scorer is asked about a dozen times for each real answer, so this is for scorers that cost nothing
(``worldmtp.envs.worth``), and real answers are often the better buy: ``completion_costs.py`` reckons.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from worldmtp.agents.config import ImaginationConfig
from worldmtp.agents.imagination.critic import LiveTokens
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import LatentState, OracleWorldModel, Policy, WorldModel, check_action_conditional
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.worth_rules import check_worth
from worldmtp.model import MTPModel
from worldmtp.model.categorical import inverse_distribution

Worth = Callable[[Int64[np.ndarray, " answer"], Sequence[Int64[np.ndarray, " _"]]], Float64[np.ndarray, " answer"]]
"""The score of each answer to the question of its row; ``TextVectorEnv.worth``."""

COMPLETIONS_RUNG = 3
"""Number of the critic that reads completions: above surprisals, readings and latents, whichever of them there are."""
NUM_COLUMNS = 6
_LEAST_LOGPROB = -20.0


@dataclass(frozen=True)
class Continuations:
    """What follows each candidate: greedily first, then as drawn. Behind ``lengths`` the tokens are zero."""

    tokens: Int[Tensor, "candidate way width"]
    lengths: Int[Tensor, "candidate way"]
    logprobs: Float[Tensor, "candidate way"]
    """Of all tokens together, by the policy that wrote them; 0 where there is none."""

    @property
    def is_first(self) -> Bool[Tensor, "candidate way"]:
        """Return which ways are not the same text as one before them."""
        same = (self.tokens[:, :, None] == self.tokens[:, None]).all(dim=-1)
        same &= self.lengths[:, :, None] == self.lengths[:, None]
        return ~same.tril(diagonal=-1).any(dim=-1)


def continue_answers(
    world_model: WorldModel[Any],
    roots: LatentState,
    candidates: Int[Tensor, " candidate"],
    room: Int[Tensor, " candidate"],
    policy: Policy,
    eos_id: int,
    uniform: Float[Tensor, "candidate drawn width"],
) -> Continuations:
    """Return how answers go on after ``candidates``, up to EOS or ``room`` tokens: greedily, and by ``uniform``.

    These numbers, in [0, 1), say which token is drawn. ``roots[n]`` is the state in which candidate n stands. Answers
    that are over take no further step.
    """
    number, ways, width = len(candidates), 1 + uniform.shape[1], uniform.shape[2]
    tokens = torch.zeros((number * ways, width), dtype=torch.long, device=candidates.device)
    lengths = torch.zeros_like(tokens[:, 0]) if width else candidates.new_zeros(number * ways)
    logprobs = torch.zeros(number * ways, dtype=torch.float64, device=candidates.device)
    going = torch.nonzero((candidates != eos_id) & (room > 0))[:, 0]
    state = world_model.step(roots.select(going), candidates[going])
    state = state.select(torch.arange(len(going), device=going.device).repeat_interleave(ways))
    at = (going[:, None] * ways + torch.arange(ways, device=going.device)).flatten()
    for place in range(width):
        if len(at) == 0:
            break
        logits = world_model.predict(state).logits
        assert logits is not None  # they were asked for
        log_policy = policy(logits)
        chosen = log_policy.argmax(dim=-1)
        drawn = torch.nonzero(at % ways)[:, 0]
        numbers = uniform[at[drawn] // ways, at[drawn] % ways - 1, place]
        chosen[drawn] = inverse_distribution(log_policy[drawn].exp(), numbers)
        tokens[at, place] = chosen
        lengths[at] += 1
        logprobs[at] += log_policy.gather(1, chosen[:, None])[:, 0].to(logprobs.dtype)
        on = torch.nonzero((chosen != eos_id) & (place + 1 < room[at // ways]))[:, 0]
        at = at[on]
        if len(on):
            state = world_model.step(state.select(on), chosen[on])
    return Continuations(tokens.view(number, ways, width), lengths.view(number, ways), logprobs.view(number, ways))


def completion_columns(
    scores: Float[Tensor, "candidate way"], continuations: Continuations
) -> Float[Tensor, "candidate columns"]:
    """Return what a critic reads of completions whose ``scores`` are in [0, 1].

    One, which says that there are any; score and log-probability of the greedy one; the mean score of those drawn, or
    of the greedy one where none was; and, over the distinct ones, sum of q and sum of q r.
    """
    greedy, drawn = scores[:, :1], scores[:, 1:]
    probability = torch.where(continuations.is_first, continuations.logprobs.exp(), 0.0).to(scores)
    return torch.stack(
        [
            torch.ones_like(scores[:, 0]),
            scores[:, 0],
            continuations.logprobs[:, 0].clamp_min(_LEAST_LOGPROB).to(scores),
            (drawn if drawn.shape[1] else greedy).mean(dim=1),
            probability.sum(dim=1),
            (probability * scores).sum(dim=1),
        ],
        dim=-1,
    )


class ScoredCompletions:
    """Completes the live tokens of a rollout's states and has them scored; ``generator`` draws the completions.

    ``trunk``, where given, completes in the place of the world model whose states an estimator has at hand.

    Raises:
        TypeError: what completes is blind to actions.
        ValueError: it cannot go to the end of an answer.
    """

    def __init__(
        self,
        world_model: WorldModel[Any],
        worth: Worth,
        acting: Acting,
        eos_id: int,
        max_new: int,
        config: ImaginationConfig,
        generator: torch.Generator,
        trunk: WorldModel[Any] | None = None,
    ) -> None:
        self._completing = completing = world_model if trunk is None else trunk
        check_action_conditional(completing)
        if completing.max_horizon is not None and completing.max_horizon < max_new - 1:
            raise ValueError(
                f"an answer may have {max_new} tokens, and of {completing.max_horizon + 1} at most these heads can "
                f"imagine the end; train a model with depth={max_new}, or set imagination.completions=trunk."
            )
        self._has_own_states = trunk is not None
        self._worth, self._acting, self._eos_id, self._max_new = worth, acting, eos_id, max_new
        self._config = config
        self._generator = generator

    @torch.no_grad()
    def features(
        self, rollout: Rollout, states: LatentState, live: LiveTokens
    ) -> tuple[Float[Tensor, "candidate columns"], dict[str, float]]:
        """Return the columns of every live candidate, zeros where nothing is completed, and what they cost.

        ``states`` are the rollout's ``acted_states`` in the world model.
        """
        start = time.perf_counter()
        asked = self._asked(live)
        rows, steps, _ = torch.nonzero(asked, as_tuple=True)
        candidates = live.ids[asked]
        first, same = _distinct(rollout, rows, steps, candidates)
        rows, steps, candidates = rows[first], steps[first], candidates[first]
        if self._has_own_states:
            states = acted_states(self._completing, rollout)
        number = rollout.step_mask.flatten().cumsum(dim=0).view_as(rollout.step_mask) - 1
        continued = self._continue(states, number[rows, steps], candidates, steps)
        drafted = time.perf_counter()
        scores = self._scores(rollout, rows, steps, candidates, continued)
        columns = completion_columns(scores, continued)[same]
        metrics = {
            "imagination/completions": float(scores.numel()),
            "imagination/imagined_tokens": float(continued.lengths.sum() + len(candidates)),
            "time/completion_seconds": time.perf_counter() - start,
            "time/imagined_scoring_seconds": time.perf_counter() - drafted,
        }
        return columns.new_zeros((int(live.mask.sum()), NUM_COLUMNS)).index_put((asked[live.mask],), columns), metrics

    def _asked(self, live: LiveTokens) -> Bool[Tensor, "batch step live"]:
        """Return the places of the tokens that are completed: none of the tail's, and by the config not all others."""
        config = self._config
        asked = live.mask & ~live.is_tail
        if config.completion_states is not None:
            has_choice = asked.sum(dim=-1) >= 2
            among_first = has_choice.long().cumsum(dim=1) <= config.completion_states
            asked = asked & (has_choice & among_first)[..., None]
        if config.completion_candidates is not None:
            asked = asked & (asked.long().cumsum(dim=-1) <= config.completion_candidates)
        return asked

    def _continue(
        self, states: LatentState, root: Int[Tensor, " text"], candidates: Tensor, steps: Tensor
    ) -> Continuations:
        """Return the continuations, some at a time; the numbers that they are drawn by do not depend on how many."""
        room = self._max_new - 1 - steps
        width = int(room.max()) if len(room) else 0
        shape = (len(candidates), self._config.completion_samples, width)
        at_once = max(1, self._config.chunk_states // (1 + self._config.completion_samples))
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64, device=self._generator.device)
        parts = [
            continue_answers(
                self._completing,
                states.select(root[chunk]),
                candidates[chunk],
                room[chunk],
                self._acting.policy,
                self._eos_id,
                uniform[chunk.to(uniform.device)].to(candidates.device),
            )
            for chunk in torch.arange(len(candidates), device=root.device).split(at_once)
        ]
        return Continuations(
            tokens=torch.cat([part.tokens for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
        )

    def _scores(
        self, rollout: Rollout, rows: Tensor, steps: Tensor, candidates: Tensor, continued: Continuations
    ) -> Float[Tensor, "text way"]:
        """Return the scores of the answers, as shares of the return range."""
        actions, tokens = rollout.actions.cpu().numpy(), continued.tokens.cpu().numpy()
        lengths = continued.lengths.tolist()
        answers = []
        for text, (row, step, token) in enumerate(zip(rows.tolist(), steps.tolist(), candidates.tolist(), strict=True)):
            begun = np.append(actions[row, :step], token)
            answers += [np.append(begun, tokens[text, way, :length]) for way, length in enumerate(lengths[text])]
        ways = continued.lengths.shape[1]
        worth = self._worth(np.repeat(rows.cpu().numpy(), ways), answers)
        low, high = self._acting.return_range
        scores = torch.from_numpy((worth - low) / (high - low)).view(-1, ways)
        return scores.to(continued.logprobs)


def _distinct(
    rollout: Rollout,
    rows: Int[Tensor, " candidate"],
    steps: Int[Tensor, " candidate"],
    tokens: Int[Tensor, " candidate"],
) -> tuple[Int[Tensor, " text"], Int[Tensor, " candidate"]]:
    """Return the first candidate of each text that there is in a group, and which text each candidate makes."""
    if len(rows) == 0:
        return rows, rows
    place = rollout.action_index[rows, steps]
    time_axis = torch.arange(rollout.input_ids.shape[1], device=rows.device)
    texts = rollout.input_ids[rows].masked_fill(time_axis >= place[:, None], -1)
    texts[torch.arange(len(rows), device=rows.device), place] = tokens
    texts, same = torch.cat([rollout.group[rows, None], texts], dim=1).unique(dim=0, return_inverse=True)
    order = torch.arange(len(rows), device=rows.device)
    first = order.new_full((len(texts),), len(rows)).scatter_reduce(0, same, order, "amin")
    return first, same


def completions_of(
    env: TextVectorEnv,
    model: MTPModel,
    world_model: WorldModel[Any],
    acting: Acting,
    config: ImaginationConfig,
    generator: torch.Generator,
) -> ScoredCompletions | None:
    """Return what completes and scores by ``config.completions``; None where nothing does.

    Raises:
        TypeError: the world model is blind to actions.
        ValueError: imagined answers have no score, or one that is paid for; or the heads cannot go to an answer's end.
    """
    if config.completions == "none":
        return None
    check_worth(env.task, env.scorer, env.eos_terminates)
    trunk = OracleWorldModel(model) if config.completions == "trunk" else None
    return ScoredCompletions(
        world_model, env.worth, acting, env.tokenizer.eos_id, env.max_new, config, generator, trunk
    )
