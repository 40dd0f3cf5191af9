"""The kernel of the text environments: rows of text in one set of arrays, which every step writes in place.

One step of a row, with t counting the row's own tokens::

    obs      tokens (N, L) int64, right-padded, L = max_prompt + max_new; length (N, 1); prompt_length (N, 1)
    action   the next token, (N,)
    reward   0 until the answer ends, then its score; of a dense task what the token added to it
    end      terminated: the action was EOS.  truncated: it was not, and the budget of max_new tokens is used up.

In a conversation EOS ends a turn: the world writes its reply behind it in the same step, pays the turn, and terminates
or truncates the text; a full row is truncated. A dense task may terminate a text before EOS. The rewards of an episode
always add up to its ``score``.

**When a row has ended** it stands still: its observation is the ended text's, it ignores actions, pays 0 and ends no
more (both flags false) until ``reset`` without a mask or with ``options={"reset_mask": ...}``. This is gymnasium's
autoreset mode "disabled", the mode for generating batch by batch, and the only one with groups: rows of a group end at
different times. ``Autoreset`` is the wrapper for the other modes, which ``gymnasium.make_vec`` puts on.

**Arrays.** With ``copy=True``, gymnasium's promise, all arrays are new in each call. With ``copy=False`` the ``tokens``
of observations are a read-only view of the environment's own, which later calls change, and a step costs the same
whatever the length of the rows.

**Infos.** Every key comes with a mask ``_key`` of the rows that have it.

* Of rows that were given a prompt: ``prompt_text``, ``example_key`` (str objects) and ``group`` (int64: groups are
  numbered on, from 0 at a seeded reset of all rows).
* Of rows that ended with this step: ``final_info``, a dict of arrays ``text`` (str objects, without special tokens),
  ``score`` (float64, what was paid), ``exact`` (bool), ``components`` (a dict of float64 arrays), ``reason`` (str
  objects: "ok", "no_eos", "error", "timeout" or the task's own), ``num_tokens`` (int64, those of the policy, EOS
  included), ``prompt_text``, ``example_key`` and ``group``; of conversations also ``acted``, (N, L) bool, which tokens
  the policy wrote, and ``reply`` and ``num_written`` of the last step. So ``infos["final_info"]["score"][row]`` where
  ``infos["_final_info"][row]``.
* Of rows in which a world replied with this step: ``reply`` (str objects), ``num_written`` (int64), its tokens, and
  ``reply_info``, a dict of arrays: what the world told with it and not to the policy, such as ``is_success``.
* Of conversations that were given a prompt, ``world``, a dict of arrays: what the world told of the start, such as
  ``optimal_value``. ``final_info`` has it, too, and the last ``reply_info``.

**Chance.** Where a task ``has_dice``, each episode whose prompt is drawn from the pool has dice of its own, by the
generator: rows of a group share their prompt and not their luck. An Example that is given brings its luck with it, that
of ``meta["dice"]``, else of its world's seed; ``example_of`` has the dice of a row.

**Reset options** (of ``reset(seed=..., options={...})``): ``split`` and ``group_size`` hold until changed; ``indices``
(into the pool of the split) and ``prompts`` (Examples, or prompts of the pool) name one prompt a group for this reset;
``reset_mask`` resets these rows only, and with ``ends_others`` the rest stand still from then on, as if they had ended.
One generator serves all rows: no row has a seed of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float64, Int, Int64

from worldmtp.envs.config import TextEnvConfig
from worldmtp.envs.dataset import EncodedExamples, TextDataset
from worldmtp.envs.fates import dice_of, loaded_examples, saved_examples, with_new_dice
from worldmtp.envs.options import ResetOptions, count_groups, parse_options, refusal_changes_nothing
from worldmtp.envs.rewards import AnswerRewards, RewardRules, StepResult, make_rewards
from worldmtp.envs.rows import (
    Columns,
    Observation,
    TextRows,
    VectorReset,
    VectorStep,
    batch_columns,
    batch_infos,
    check_actions,
    object_column,
    observation_space,
)
from worldmtp.envs.scoring import Scorer, ScorerCounters
from worldmtp.envs.task import Example, TurnTask
from worldmtp.envs.text_env import TextVectorEnv
from worldmtp.envs.worth import worth_of
from worldmtp.envs.worth_rules import check_worth

_STATE_VERSION = 2


class TextGenVectorEnv(TextVectorEnv):
    """Text generation in ``num_envs`` rows; the module's docstring is the contract.

    Args:
        num_envs: rows.
        config: the task, tokenizer and budgets; None makes it of ``fields``.
        autoreset_mode: "disabled", the only one; ``gymnasium.make_vec`` and ``Autoreset`` have the others.
        group_size: consecutive rows that share a prompt.
        render_mode: "ansi" or None.
        copy: whether the ``tokens`` of observations are copies, or a read-only view that later steps change.
        **fields: of ``TextEnvConfig``; they go before those of ``config``.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: TextEnvConfig | None = None,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.DISABLED,
        group_size: int = 1,
        render_mode: str | None = None,
        copy: bool = True,
        **fields: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1.")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode={render_mode!r} is unknown; expected 'ansi' or None.")
        if autoreset_mode not in (AutoresetMode.DISABLED, "disabled", AutoresetMode.DISABLED.value):
            raise ValueError(
                f"autoreset_mode={autoreset_mode!r}: rows of a TextGenVectorEnv stand still when they end. Make it by "
                "gymnasium.make_vec(id, autoreset_mode=...), or put worldmtp.envs.Autoreset around it."
            )
        self.num_envs, self.render_mode, self.copy = num_envs, render_mode, copy
        self.metadata = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": AutoresetMode.DISABLED}
        self.config = TextEnvConfig(**fields) if config is None else replace(config, **fields)
        self._dataset = TextDataset(self.config)
        self._scorer = Scorer(
            self._dataset.task,
            self.config.timeout_seconds,
            self.config.on_error,
            num_scorers=self.config.num_scorers,
            scorer_memory_gib=self.config.scorer_memory_gib,
            paid=self.config.paid_scorer,
        )
        width, vocab_size = self._dataset.max_prompt + self._dataset.max_new, self.tokenizer.vocab_size
        self.single_observation_space: spaces.Space[Any] = observation_space(width, vocab_size)
        self.single_action_space: spaces.Space[Any] = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows = TextRows(num_envs, width, self.tokenizer.pad_id)
        self._rewards = self.new_rewards(num_envs)
        self._eos_terminates = self._rewards.eos_terminates
        self._split = self.config.split
        self._group_size = 1
        self._use(parse_options({"group_size": group_size}, num_envs))
        self.is_begun = False
        """Whether there has been a reset."""
        self._examples, self._keys, self._prompts, self._splits = (np.full(num_envs, None) for _ in range(4))
        self._indices = np.full(num_envs, -1, dtype=np.int64)
        self._is_world = isinstance(self._dataset.task, TurnTask)  # asked once: of a protocol it takes 15 us
        self._has_dice = bool(getattr(self._dataset.task, "has_dice", False))
        self._groups = np.full(num_envs, -1, dtype=np.int64)
        self._num_groups = 0

    @property
    def done(self) -> Bool[np.ndarray, " row"]:
        """Return the rows that have ended and wait for their reset, as a new array."""
        return self._rows.done.copy()

    @property
    def group_size(self) -> int:
        """Consecutive rows that share a prompt."""
        return self._group_size

    def new_rewards(self, num_rows: int) -> AnswerRewards:
        """Return what pays so many rows of other texts of this task, by the same scorer."""
        dataset = self._dataset
        rules = RewardRules(
            dataset.tokenizer,
            self._scorer,
            dataset.max_new,
            dataset.max_steps,
            self.config.truncation_score,
            self.config.max_turn,
        )
        return make_rewards(dataset.task, rules, num_rows, dataset.max_prompt + dataset.max_new)

    def example_of(self, row: int) -> Example:
        """Return the question that a row answers."""
        example: Example = self._examples[row]
        return example

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Begin new texts, in all rows or those of the mask.

        Raises:
            ValueError: if an option is unknown or impossible.
        """
        with refusal_changes_nothing(self, "_split", "_group_size"):
            VectorEnv.reset(self, seed=seed)  # seeds the generator
            asked = parse_options(options, self.num_envs)
            if not self.is_begun and asked.reset_mask is not None and not asked.reset_mask.all():
                raise ResetNeeded("the first reset must be of all rows; call reset without a reset_mask.")
            mask = np.ones(self.num_envs, dtype=bool) if asked.reset_mask is None else asked.reset_mask
            rows = mask.nonzero()[0]
            self._use(asked)
            choice = self._choose(rows, asked)
        if seed is not None and mask.all():
            self._num_groups = 0
        self._give_prompts(rows, choice)
        if asked.ends_others:
            self._rows.done |= ~mask
        return self._rows.observation(self.copy), batch_columns(self._prompt_columns(rows), rows, self.num_envs)

    def step(self, actions: Int[np.ndarray, " env"]) -> VectorStep:
        """Append one token to every row that has not ended. A step that raises changes nothing.

        Raises:
            ValueError: if the actions have the wrong shape, or one for a running row is not in the vocabulary.
            ResetNeeded: before the first reset.
        """
        if not self.is_begun:
            raise ResetNeeded("call reset before step.")
        live = ~self._rows.done
        actions = check_actions(actions, live, self.tokenizer.vocab_size)
        acting = live.nonzero()[0]
        self._rows.append(acting, actions[acting])
        try:
            result = self._rewards.step(self._rows, live, actions, self._examples)
        except BaseException:
            self._rows.remove_last(acting)
            raise
        infos = self._infos(result)
        return self._rows.observation(self.copy), result.rewards, result.terminated, result.truncated, infos

    def worth(
        self, rows: Int[np.ndarray, " answer"], answers: Sequence[Int64[np.ndarray, " _"]]
    ) -> Float64[np.ndarray, " answer"]:
        """Return what imagined answers are worth; see ``TextVectorEnv.worth``.

        Raises:
            ValueError: they cannot be scored, or an answer is not over.
            ResetNeeded: before the first reset.
        """
        check_worth(self.task, self.scorer, self.eos_terminates)
        if not self.is_begun:
            raise ResetNeeded("call reset before worth: rows without a question have no answers.")
        return worth_of(self._rewards.rules, self._examples[rows].tolist(), answers)

    def render(self) -> tuple[str, ...] | None:
        """Return the rows' texts, prompt and response, in "ansi" mode."""
        if self.render_mode is None or not self.is_begun:
            return None
        return tuple(self.tokenizer.decode(self._rows.response(row, 0).tolist()) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """End the scoring processes."""
        self.scorer.close()

    def state(self) -> dict[str, Any]:
        """Return a JSON-able snapshot of all that decides the future, generator included.

        (Of prompts given as Examples, their ``meta`` must be JSON-able for the snapshot to be; it pickles in any case.)
        """
        if not self.is_begun:
            raise ResetNeeded("there is no state before the first reset.")
        rows = self._rows
        return {
            "version": _STATE_VERSION,
            "rules": self._rules(),
            "split": self._split,
            "splits": self._splits.tolist(),
            "pools": {split: self.dataset.pool(split).fingerprint() for split in sorted({self._split, *self._splits})},
            "group_size": self._group_size,
            "num_groups": self._num_groups,
            "groups": self._groups.tolist(),
            "indices": self._indices.tolist(),
            "examples": saved_examples(self._examples, self._indices),
            **({"dice": [dice_of(example) for example in self._examples]} if self._has_dice else {}),
            "tokens": rows.tokens.tolist(),
            "length": rows.length.tolist(),
            "prompt_length": rows.prompt_length.tolist(),
            "done": rows.done.tolist(),
            "referee": self._rewards.state(),
            "np_random": self.np_random.bit_generator.state,
            "np_random_seed": self._np_random_seed,
            "scorer": vars(self.scorer.counters).copy(),
            "scorer_imagined": vars(self.scorer.imagined).copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> Observation:
        """Go on from a snapshot of an env with the same arguments; returns the observation there.

        Raises:
            ValueError: if the snapshot is of another version, size, vocabulary or set of prompts.
        """
        tokens = np.array(state["tokens"], dtype=np.int64)
        pools = {split: self.dataset.pool(split).fingerprint() for split in state["pools"]}
        found = state["version"], state.get("rules"), tokens.shape, state["pools"]
        expected = _STATE_VERSION, self._rules(), self._rows.tokens.shape, pools
        if found != expected:
            raise ValueError(
                f"this state does not belong to this env: version, rules, shape of tokens and prompts are {found}; "
                f"expected {expected}. Make the env with the arguments it was saved with."
            )
        self._split, self._group_size = state["split"], state["group_size"]
        self._num_groups = state["num_groups"]
        self._groups = np.array(state["groups"], dtype=np.int64)
        self._indices = np.array(state["indices"], dtype=np.int64)
        self._examples = loaded_examples(state, lambda split: self.dataset.pool(split).examples)
        self._splits = object_column(state["splits"])
        self._keys = object_column([example.key for example in self._examples])
        self._prompts = object_column([example.prompt for example in self._examples])
        self._rows.tokens[:] = tokens
        self._rows.length[:], self._rows.prompt_length[:] = state["length"], state["prompt_length"]
        self._rows.done[:] = state["done"]
        self.is_begun = True
        self._rewards.load_state(state["referee"])
        self.np_random.bit_generator.state = state["np_random"]
        self._np_random_seed = state["np_random_seed"]
        self.scorer.counters = ScorerCounters(**state["scorer"])
        self.scorer.imagined = ScorerCounters(**state.get("scorer_imagined", {}))  # older snapshots imagined nothing
        return self._rows.observation(self.copy)

    def _rules(self) -> dict[str, Any]:
        return {
            "autoreset_mode": AutoresetMode.DISABLED.value,
            "referee": self._rewards.kind,
            "max_steps": self.dataset.max_steps,
            "max_turn": self.config.max_turn,
            "truncation_score": self.config.truncation_score,
        }

    def _use(self, asked: ResetOptions) -> None:
        self._group_size = asked.group_size or self._group_size
        self._split = asked.split or self._split

    def _choose(self, rows: np.ndarray, asked: ResetOptions) -> tuple[EncodedExamples, np.ndarray]:
        """Return one example a row, and its index in the pool or -1."""
        size = self._group_size
        num_groups = count_groups(rows, size)
        pool = self.dataset.pool(self._split)
        if asked.prompts is not None:
            chosen = self.dataset.encode(self.dataset.find(asked.prompts, self._split))
            indices = np.full(len(chosen), -1, dtype=np.int64)
        else:
            given = asked.indices
            indices = self.np_random.integers(len(pool), size=num_groups) if given is None else given
            if indices.ndim != 1 or ((indices < 0) | (indices >= len(pool))).any():
                raise ValueError(f"indices must be a list of indices of the pool, 0..{len(pool) - 1}, got {indices}.")
            chosen = pool.select(indices)
        if len(chosen) != num_groups:
            raise ValueError(f"{len(chosen)} prompts are named for {num_groups} groups of {size} rows.")
        repeats = np.repeat(np.arange(num_groups), size)
        repeated = chosen if size == 1 else chosen.select(repeats)
        if self._has_dice and asked.prompts is None:
            repeated = with_new_dice(repeated, self.np_random)
        return repeated, indices[repeats]

    def _give_prompts(self, rows: np.ndarray, choice: tuple[EncodedExamples, np.ndarray]) -> None:
        chosen, indices = choice
        self._rows.begin(rows, chosen.tokens, chosen.length)
        self._rewards.begin(rows, chosen.length)
        self.is_begun = True
        self._examples[rows], self._keys[rows], self._prompts[rows] = chosen.examples, chosen.keys, chosen.prompts
        self._splits[rows] = self._split
        self._indices[rows] = indices
        self._groups[rows] = self._num_groups + np.arange(len(rows)) // self._group_size
        self._num_groups += len(rows) // self._group_size

    def _infos(self, result: StepResult) -> dict[str, Any]:
        """Return what is told of a step, and let the rows that ended stand still."""
        infos: dict[str, Any] = {}
        if result.replies:
            infos |= batch_infos(list(result.replies.values()), np.array(list(result.replies)), self.num_envs)
        if result.records:
            ended = result.terminated | result.truncated
            self._rows.done |= ended
            rows = ended.nonzero()[0]
            infos["final_info"] = batch_columns({**result.records, **self._prompt_columns(rows)}, rows, self.num_envs)
            infos["_final_info"] = ended
        return infos

    def _prompt_columns(self, rows: np.ndarray) -> Columns:
        columns = {
            "prompt_text": self._prompts[rows],
            "example_key": self._keys[rows],
            "group": self._groups[rows],
        }
        if self._is_world:
            columns["world"] = [dict(example.info) for example in self._examples[rows]]
        return columns
