"""``TextGenRollout``: an environment as the ``rollout_func`` of TRL's GRPOTrainer.

TRL passes prompts and its trainer, and gets back token ids, their log-probabilities and a mask that is 1 where the
policy wrote. The model reads what a world wrote, but no loss is taken there. Prompts and completions are the ids of the
environment's rows; text is never encoded again. This module does not import trl.

Left out: RLOOTrainer, which has no ``rollout_func``; vLLM; models whose weights are sharded over devices.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.envs import Example, TextVectorEnv
from worldmtp.envs.fates import DICE_RANGE, with_dice
from worldmtp.model import MTPModel
from worldmtp.model.adapters import without_peft_wrapper
from worldmtp.model.config import MTPConfig
from worldmtp.post_training.guards import WHOLE_POLICY


class TextGenRollout:
    """Play TRL's prompts in an environment; pass it as ``rollout_func=``, with the rows it makes as the data set.

    ::

        rollout = TextGenRollout(gymnasium.make_vec(env_id, num_envs=16, autoreset_mode="disabled"), seed=0)
        trainer = GRPOTrainer(
            model,
            reward_funcs=env_reward,
            args=GRPOConfig(..., max_completion_length=rollout.max_new),
            train_dataset=Dataset.from_list(rollout.rows("train", 256, seed=0)),
            rollout_func=rollout,
            processing_class=...,  # it is used for what is logged only
        )

    What it returns besides TRL's ``prompt_ids``, ``completion_ids``, ``logprobs`` and ``env_mask``: ``env_reward``, the
    sum of an episode's rewards, which the reward function of that name returns, and ``env_exact``; ``token_rewards``,
    by token what that sum is of, and ``env_truncated``, which ``MTPPPOTrainer`` reads. Log-probabilities are those of
    the tokens as they were sampled, at the trainer's ``temperature``; 0 where the environment wrote.

    Where the task ``has_dice``, each episode has dice of its own: the rows of a prompt share its start, not their luck.

    What is drawn depends on ``seed``, the trainer's global step, the number of calls in it to train, or to evaluate,
    and the process. A resumed run, which does not evaluate again what was evaluated before its checkpoint, therefore
    draws as one that went through. With TRL's own trainers that needs a checkpoint that stands at a generation: they
    keep no generated batch in one, as those of this package do, and generate anew where they resume. A generation
    serves ``num_iterations * steps_per_generation / gradient_accumulation_steps`` optimiser steps; make ``save_steps``
    a multiple of that, which it always is with TRL's defaults of ``num_iterations`` and ``steps_per_generation``.

    Args:
        env: rows, with ``autoreset_mode="disabled"``; so many episodes are played at a time.
        seed: of the sampling.

    Raises:
        ValueError: if a row would be reset by itself, or rows come in groups: TRL repeats prompts by itself.
    """

    def __init__(self, env: TextVectorEnv, seed: int) -> None:
        mode = getattr(env.metadata.get("autoreset_mode"), "name", None)
        if mode != "DISABLED":
            raise ValueError(f"autoreset_mode={mode} would mix episodes in one row; make the env with 'disabled'.")
        self.env, self.seed = env, seed
        self._examples: dict[str, Example] = {}
        self._calls: dict[tuple[int, bool], int] = {}
        self._model: MTPModel | None = None

    @property
    def max_new(self) -> int:
        """Return the trainer's ``max_completion_length``: the most tokens after a prompt, of the environment too."""
        return self.env.max_new

    def rows(self, split: str, num_examples: int, seed: int) -> list[dict[str, str]]:
        """Return distinct examples as rows of ``prompt`` and ``example_key``; their episodes can be played from now on.

        TRL passes a rollout nothing but prompts. Where something hidden decides an episode, such as the seed of a
        world, the row's prompt therefore ends with ``[example_key]``, which the model never sees.

        Raises:
            ValueError: if an earlier call gave another question under the same prompt.
        """
        return self.rows_of(self.env.examples(split, num_examples, seed))

    def rows_of(self, examples: Sequence[Example]) -> list[dict[str, str]]:
        """Return examples of your own choice as ``rows`` does; each question once.

        Raises:
            ValueError: if another question has been given under the same prompt.
        """
        rows = []
        for example in examples:
            prompt = f"{example.prompt} [{example.key}]" if example.hidden else example.prompt
            known = self._examples.setdefault(prompt, example)
            if self.env.dataset.identity(known) != self.env.dataset.identity(example):
                raise ValueError(
                    f"{example} has the prompt of {known}, which an earlier rows() gave, and is another question, so "
                    "that its prompt does not say which is to be played; ask for all rows of a split at once, which "
                    "gives each prompt once, or make the prompts differ."
                )
            rows.append({"prompt": prompt, "example_key": example.key})
        return rows

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """Return the episodes of the prompts, one for each and in order.

        Raises:
            ValueError: if a prompt is unknown, the trainer samples in a way that ``TrunkPolicy`` does not, the
                vocabulary is not the environment's, or PEFT's wrapper does more than the layers inside it.
        """
        examples = [self._find(prompt) for prompt in prompts]
        check_trainer(trainer)
        model: PreTrainedModel = without_peft_wrapper(trainer.accelerator.unwrap_model(trainer.model))
        self._check_vocabulary(model)
        drawn = self._next_seed(trainer)
        if getattr(self.env.dataset.task, "has_dice", False):
            dice = np.random.default_rng(drawn).integers(DICE_RANGE, size=len(examples)).tolist()
            examples = [with_dice(*one) for one in zip(examples, dice, strict=True)]
        generator = torch.Generator(model.device).manual_seed(drawn)
        # TRL generates in train mode, in which dropout would sample from another policy.
        with evaluation_mode(model), torch.no_grad():
            policy = TrunkPolicy(self._mtp_model(model), float(trainer.args.temperature))
            played = [
                episode
                for batch in batches(examples, self.env.num_envs)
                for episode in self._play(batch, policy, generator)
            ]
        return {key: [episode[key] for episode in played] for key in played[0]}

    def _check_vocabulary(self, model: PreTrainedModel) -> None:
        ids, rows = self.env.tokenizer.vocab_size, model.config.get_text_config().vocab_size
        if ids != rows:
            raise ValueError(
                f"the environment's tokenizer has {ids} ids and the model a vocabulary of {rows}; TRL's loss takes its "
                f"softmax over the whole of it, so call model.resize_token_embeddings({ids}), or give the environment "
                "the model's own tokenizer."
            )

    def _play(
        self, examples: Sequence[Example], policy: TrunkPolicy, generator: torch.Generator
    ) -> Iterator[dict[str, Any]]:
        """Yield the examples' episodes; rows without an example play the last one again, and are left out."""
        padded = [*examples, *[examples[-1]] * (self.env.num_envs - len(examples))]
        rollout = collect_rollout(self.env, policy, generator, {"prompts": padded, "group_size": 1})
        if rollout.is_masked:
            raise ValueError(
                "the environment masks actions, and TRL's loss takes its softmax over all tokens; train on it with "
                "worldmtp train, or leave the mask out."
            )
        for row in range(len(examples)):
            yield episode_of(rollout, row)

    def _find(self, prompt: Any) -> Example:
        example = self._examples.get(prompt) if isinstance(prompt, str) else None
        if example is None:
            raise ValueError(
                f"the prompt {prompt!r} is none of the {len(self._examples)} that rows() gave; train on rows of this "
                "very object, their prompts unchanged."
            )
        return example

    def _next_seed(self, trainer: Any) -> int:
        step, trains = int(trainer.state.global_step), bool(trainer.model.training)
        # Counted apart: an evaluation comes before the checkpoint of its step, and a resumed run has none there.
        number = self._calls.get((step, trains), 0)
        self._calls = {key: count for key, count in self._calls.items() if key[0] == step} | {
            (step, trains): number + 1
        }
        entropy = [self.seed, int(trainer.accelerator.process_index), step, number] + ([] if trains else [1])
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _mtp_model(self, model: PreTrainedModel) -> MTPModel:
        """Return the model as an MTPModel without heads that shares its weights; it is made once."""
        if isinstance(model, MTPModel):
            return model
        if self._model is None or self._model.trunk is not model:
            generator = torch.Generator().manual_seed(0)  # of world heads that nobody asks; not the global one
            self._model = MTPModel.from_trunk(model, MTPConfig(head="latent", depth=1), generator)
        return self._model


def check_trainer(trainer: Any) -> None:
    """Raise if the trainer samples in another way than ``TrunkPolicy``.

    Raises:
        ValueError: it does, or the model's weights are sharded.
    """
    changed = {
        name: getattr(trainer.args, name)
        for name, plain in WHOLE_POLICY.items()
        if getattr(trainer.args, name, None) not in plain
    }
    if changed:
        raise ValueError(
            f"the trainer samples with {changed}, a rollout from the policy itself at the trainer's temperature; "
            "leave them at their defaults."
        )
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
        raise ValueError(
            "the model's weights are sharded over devices; rollouts need them whole: use DDP or one device."
        )


def batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Yield the examples in order, ``size`` at a time; the last may be fewer."""
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def episode_of(rollout: Rollout, row: int) -> dict[str, Any]:
    """Return an episode as the fields that TRL takes."""
    start, stop = int(rollout.prompt_length[row]), int(rollout.attention_mask[row].sum())
    taken = rollout.step_mask[row]
    places = rollout.action_index[row][taken]
    acted = torch.zeros_like(rollout.input_ids[row])
    acted[places] = 1
    paid = torch.zeros(len(acted), dtype=torch.float64)
    paid[places] = rollout.rewards[row][taken].double()
    logprobs = torch.zeros(len(acted), dtype=torch.float64)
    logprobs[places] = rollout.logprobs[row][taken].double()
    return {
        "prompt_ids": rollout.input_ids[row, :start].tolist(),
        "completion_ids": rollout.input_ids[row, start:stop].tolist(),
        "logprobs": logprobs[start:stop].tolist(),
        "env_mask": acted[start:stop].tolist(),
        "env_reward": float(rollout.rewards[row].double().sum()),
        "env_exact": bool(rollout.exact[row]),
        "token_rewards": paid[start:stop].tolist(),
        "env_truncated": bool(rollout.truncated[row].any()),
    }


def env_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    env_reward: Sequence[float] | None = None,
    **columns: Any,
) -> list[float]:
    """Return what the environment paid, for ``reward_funcs=``: the field of that name from ``TextGenRollout``.

    Raises:
        ValueError: if there is no such field.
    """
    if env_reward is None:
        raise ValueError("there is no field 'env_reward'; pass rollout_func=TextGenRollout(...) to the same trainer.")
    return list(env_reward)


vars(env_reward)["token_field"] = "token_rewards"  # where in an episode it was earned, which MTPPPOTrainer asks for
