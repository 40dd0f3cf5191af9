"""One trainer of TRL's inside a run: its arguments, made before anything is trained, its data, and its checkpoints."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from transformers import PrinterCallback

import worldmtp.post_training
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.choices import check_choice
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.task import TurnTask
from worldmtp.envs.text_env import unrecorded
from worldmtp.model import MTPModel
from worldmtp.post_training import PPOImagination, TextGenReward, TextGenRollout, env_reward
from worldmtp.post_training.imagined import check_imagination_fits
from worldmtp.random import stream_seed
from worldmtp.training.config import PostTrainingConfig, TrainConfig
from worldmtp.training.make import make_env
from worldmtp.training.reinforce import check_none_is_lost
from worldmtp.training.trl_data import (
    keep_answers,
    kept_answers,
    labelled_answers,
    pool_of,
    preference_pairs,
    sample_answers,
    texts,
)
from worldmtp.training.trl_log import StepCallback
from worldmtp.training.warm_start import checkpoints_of_one_second, last_whole_checkpoint, step_of, tokenizer_of

FOLDER = "post_training"
ANSWERS_FILE = "answers.jsonl"
_PREFERENCE, _SAMPLING = ("dpo", "kto"), ("grpo", "ppo", "rloo")
_COMPLETION_ONLY = "completion_only_loss"
_OF_THE_RUN = (
    *("save_strategy", "save_only_model", "ignore_data_skip", "load_best_model_at_end"),
    *("logging_strategy", "eval_strategy", "eval_on_start", "push_to_hub"),
)
"""A run saves, logs and evaluates by itself: with some of these it could not be resumed as the same run."""


class TrainerStage:
    """The trainer that ``post_training.trainer`` names, on the pool of ``env``.

    Raises:
        ValueError: an option is unknown or is a key of its own, numbers do not fit each other, or the environment is
            nothing for this trainer.
    """

    def __init__(self, config: TrainConfig, env: TextVectorEnv, directory: Path) -> None:
        assert config.post_training.trainer is not None
        self.name = config.post_training.trainer
        self._config, self._env = config, env
        self._options: PostTrainingConfig = config.post_training
        self._directory = directory
        self._answers = directory / FOLDER / ANSWERS_FILE
        self._checkpoints = directory / FOLDER / "trainer"
        self._is_conversation = isinstance(env.task, TurnTask)
        self._check()
        self._tokenizer = tokenizer_of(env)
        if self.name in _PREFERENCE:
            self._tokenizer = copy.deepcopy(self._tokenizer)
            self._tokenizer.split_special_tokens = False
        self.args = self._make_args()

    def check_prompts(self) -> None:
        """Refuse a pool that fills no sampled batch, on which TRL would end without a step.

        Raises:
            ValueError: it has fewer prompts.
        """
        if self.name not in _SAMPLING:
            return
        found = len(pool_of(self._env, self._options.num_prompts))
        number = self.args.generation_batch_size // self.args.num_generations
        if found < number:
            raise ValueError(
                f"there are {found} training prompts (post_training.num_prompts={self._options.num_prompts}) and a "
                f"sampled batch has {number}, so no step would be made; give more, or lower post_training.batch_size."
            )

    def saved_step(self) -> int:
        """Return the step of the last whole checkpoint, -1 before the first.

        Raises:
            CheckpointError: the log shows that there were some and there is none.
        """
        last = last_whole_checkpoint(self._checkpoints)
        if last is not None:
            return step_of(last)
        check_none_is_lost(self._directory, self._checkpoints)
        return -1

    def train(self, model: MTPModel, callback: StepCallback) -> None:
        """Train ``model`` in place, from the last whole checkpoint on."""
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        trainer_class = getattr(worldmtp.post_training, f"MTP{self.name.upper()}Trainer")
        given: dict[str, Any] = {"args": self.args, "processing_class": self._tokenizer}
        if self._imagines:
            given["imagined_advantages"] = self._imagination(model)
        trainer = trainer_class(model, **given, **self._data(model), callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        callback.seconds_of_numbers = trainer.mtp_numbers.take_seconds
        last = last_whole_checkpoint(self._checkpoints)
        with checkpoints_of_one_second():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        trainer.release_model()

    # -----------------------------------------------------------------------------------------------------------------
    # Arguments
    # -----------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._is_conversation and self.name not in ("grpo", "ppo"):
            raise ValueError(
                f"post_training.trainer={self.name}: {self._config.env.id} is a conversation, which grpo and ppo alone "
                "can train on; choose one of them, or an environment of single answers."
            )
        wrappers = [one if isinstance(one, str) else one.get("name") for one in self._config.env.wrappers]
        if "action_mask" in wrappers:
            raise ValueError(
                f"env.wrappers={wrappers}: TRL's losses take their softmax over all tokens, whatever a mask allows; "
                "leave action_mask out."
            )
        if (
            self.name == "kto"
            and self._options.batch_size < 2
            and self._options.options.get("loss_type", "kto") == "kto"
        ):
            raise ValueError(
                "post_training.batch_size=1: kto estimates its KL from the answers beside one another in a batch; set "
                "at least 2."
            )
        if self.name == "dpo" and self._options.group_size < 2:
            raise ValueError(
                f"post_training.group_size={self._options.group_size}: dpo pairs the best and the worst answer to a "
                "prompt; set at least 2, or post_training.trainer=kto, which takes single answers."
            )
        if self.name == "sft" and self._options.beta is not None:
            raise ValueError(f"post_training.beta={self._options.beta}: sft has no reference; leave it out.")
        if self._config.profile.device.startswith("cuda:"):
            raise ValueError(
                f"profile.device={self._config.profile.device}: Hugging Face's Trainer takes the first CUDA device it "
                "sees; set profile.device=cuda and CUDA_VISIBLE_DEVICES."
            )
        if self._imagines and self.name != "ppo":
            raise ValueError(
                f"imagination={self._config.imagination.use} makes advantages of tokens, which "
                f"post_training.trainer={self.name} has none of; set imagination=off, or post_training.trainer=ppo."
            )

    def _make_args(self) -> Any:
        config_class = getattr(worldmtp.post_training, f"MTP{self.name.upper()}Config")
        own, given = self._own_arguments(), dict(self._options.options)
        known = [field.name for field in fields(config_class) if field.init]
        for name in given:
            check_choice("a key of post_training.options", str(name), known)
            if name in _OF_THE_RUN:
                raise ValueError(
                    f"post_training.options.{name}: a run saves, logs and evaluates by itself, so that it can be "
                    "resumed to the bit; leave it out, see checkpoint and eval in the config."
                )
            if name in own:
                raise ValueError(f"post_training.options.{name} has a key of its own; see post_training in the config.")
        try:
            args = config_class(**own, **given)
            if self._imagines:
                check_imagination_fits(self._config.imagination, args)
        except (TypeError, ValueError) as error:
            raise ValueError(f"post_training.trainer={self.name}: {error}") from error
        return args

    def _own_arguments(self) -> dict[str, Any]:
        config, options = self._config, self._options
        objective = config.objective.to_dict()
        if options.mtp.coef is not None:
            objective["coef"] = {"start": options.mtp.coef}
        arguments: dict[str, Any] = {
            "output_dir": str(self._checkpoints),
            "max_steps": options.num_steps,
            "per_device_train_batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "warmup_steps": options.warmup_steps,
            "mtp_objective": objective,
            "mtp_tokens": options.mtp.tokens,
            "logging_steps": 1,
            "save_steps": config.checkpoint.every_iterations,
            "save_total_limit": config.checkpoint.keep_last,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": stream_seed(config.seed, "post-training") % 2**32,  # Hugging Face seeds numpy, too
            "bf16": config.model.compute_dtype == "bfloat16",
            "use_cpu": config.profile.device == "cpu",
        }
        if options.mtp.detach is not None:
            arguments["mtp_detach"] = options.mtp.detach
        if options.beta is not None:
            arguments["beta"] = options.beta
        if self.name in _SAMPLING:
            arguments |= {
                "max_completion_length": self._env.max_new,
                "num_generations": options.group_size,
                "temperature": config.agent.rollout.temperature,
                "mtp_draft": options.mtp.draft,
                "mtp_num_draft": options.mtp.num_draft,
            }
        else:
            arguments["max_length"] = self._env.dataset.max_prompt + self._env.dataset.max_new
        return arguments

    # -----------------------------------------------------------------------------------------------------------------
    # Data
    # -----------------------------------------------------------------------------------------------------------------

    def _data(self, model: MTPModel) -> dict[str, Any]:
        examples = pool_of(self._env, self._options.num_prompts)
        if self.name == "sft":
            learns_prompts = self._options.options.get(_COMPLETION_ONLY) is False
            return {"train_dataset": texts(self._env, examples, model.config.vocab_size or 0, learns_prompts)}
        if self.name in _PREFERENCE:
            if not self._answers.exists():
                seed = stream_seed(self._config.seed, "answers to prefer")
                temperature = self._config.agent.rollout.temperature
                answers = sample_answers(model, self._env, examples, self._options.group_size, temperature, seed)
                keep_answers(self._answers, answers)
            end = str(self._tokenizer.eos_token)  # TRL writes it behind an answer, and reads it back as a token
            answers = [answer for answer in kept_answers(self._answers) if end not in answer.prompt + answer.text]
            rows: Any = preference_pairs(answers) if self.name == "dpo" else labelled_answers(answers)
            return {"train_dataset": Dataset.from_list(rows)}
        if self._is_conversation:
            rollout = TextGenRollout(make_env(self._config.env, self._options.batch_size), self._rollout_seed)
            rows = rollout.rows_of(examples)
            return {"train_dataset": Dataset.from_list(rows), "reward_funcs": env_reward, "rollout_func": rollout}
        env = self._config.env
        reward = TextGenReward(env.id, name="env", text_wrappers=unrecorded(env.wrappers), **env.kwargs)
        rows = reward.rows_of(examples)
        reward.check_tokenizer(self._tokenizer)
        return {"train_dataset": Dataset.from_list(rows), "reward_funcs": reward}

    @property
    def _imagines(self) -> bool:
        return self._config.imagination.use != "off"

    def _imagination(self, model: MTPModel) -> PPOImagination:
        """Return what imagines, which knows the rules that end a turn of the environment."""
        config = self._config
        acting = Acting.of(self._env, config.agent.rollout.temperature, model.config.value_range)
        seed = stream_seed(config.seed, "imagination of post-training")
        return PPOImagination(model, self.args, config.imagination, config.world_model, seed, acting.turns)

    @property
    def _rollout_seed(self) -> int:
        return stream_seed(self._config.seed, "rollouts of post-training")
