"""The warm start: TRL's SFT with the MTP heads, on the task's own answers to training prompts."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from worldmtp.envs import Example, TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.objective import MTPObjective
from worldmtp.post_training import MetricWriterCallback, MTPSFTConfig, MTPSFTTrainer, build_demonstrations
from worldmtp.tracking import MetricWriter
from worldmtp.training.config import SFTStageConfig
from worldmtp.training.saved_model import save_model, transformers_tokenizer


class _ProgressCallback(TrainerCallback):
    def __init__(self, report: Callable[[float, str], None]) -> None:
        self._report = report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._report(state.global_step / state.max_steps, f"step {state.global_step}/{state.max_steps}")


class _EvaluateCallback(TrainerCallback):
    """Evaluates before the first step and every so many, before the checkpoint: a resumed log holds each once."""

    def __init__(self, evaluate: Callable[[int], object], every_steps: int) -> None:
        self._evaluate, self._every_steps = evaluate, every_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._every_steps == 0:
            self._evaluate(state.global_step)


class _LogCallback(MetricWriterCallback):
    """Leaves out what the trainer counts from its last start on, which a resumed run would state wrongly."""

    _OF_THIS_PROCESS = frozenset(
        {"num_tokens", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kept = {name: value for name, value in (logs or {}).items() if name not in self._OF_THIS_PROCESS}
        super().on_log(args, state, control, kept, **kwargs)


def warm_start(
    model: MTPModel,
    env: TextVectorEnv,
    examples: list[Example],
    config: SFTStageConfig,
    objective: MTPObjective,
    directory: Path,
    seed: int,
    writer: MetricWriter,
    report: Callable[[float, str], None],
    compute_dtype: str,
    evaluate: Callable[[int], object],
) -> None:
    """Train ``model`` in place and leave it in ``directory/model``; ``evaluate`` is told the steps done.

    A run that was killed goes on from the trainer's last whole checkpoint, to the bit.
    """
    datasets.disable_progress_bars()
    tokenizer = env.tokenizer
    pairs = [(tokenizer.encode(example.prompt), tokenizer.encode(example.answer or "")) for example in examples]
    dataset = build_demonstrations(pairs, eos_token_id=tokenizer.eos_id, vocab_size=model.config.vocab_size or 0)
    processing_class = tokenizer_of(env)
    checkpoints = directory / "trainer"
    args = MTPSFTConfig(
        output_dir=str(checkpoints),
        max_steps=config.num_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        weight_decay=0.01,
        mtp_objective=objective.to_dict(),
        logging_steps=config.log_steps,
        save_steps=config.save_steps,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        bf16=compute_dtype == "bfloat16",
        max_length=env.dataset.max_prompt + env.dataset.max_new,
    )
    trainer = MTPSFTTrainer(
        model,
        args,
        train_dataset=dataset,
        processing_class=processing_class,
        callbacks=[_LogCallback(writer, prefix="sft/"), _ProgressCallback(report)],
    )
    if config.eval_steps is not None:
        trainer.add_callback(_EvaluateCallback(evaluate, config.eval_steps))
    trainer.remove_callback(PrinterCallback)
    last = last_whole_checkpoint(checkpoints)
    writer.resume_at(-1 if last is None else step_of(last))
    with checkpoints_of_one_second():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.release_model()
    save_model(model, directory / "model", processing_class)
    shutil.rmtree(checkpoints)


@contextmanager
def checkpoints_of_one_second() -> Iterator[None]:
    """Keep the trainer from warning that checkpoints were written within one second of one another.

    It then orders them by their steps, as is right for any, and takes the file system for the reason. Steps of small
    models are that fast. All that its module says beside this is let through.
    """
    logger = logging.getLogger("transformers.trainer_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("mtime may not be reliable on this filesystem")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def last_whole_checkpoint(directory: Path) -> Path | None:
    """Return the trainer's newest whole checkpoint, and remove those that a kill cut short.

    The trainer writes into the final place, the state file last, so a state file that can be read tells.
    """
    whole: list[Path] = []
    for checkpoint in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            whole.append(checkpoint)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimiser steps of a checkpoint of the trainer's, which its name says."""
    return int(checkpoint.name.rpartition("-")[2])


def tokenizer_of(env: TextVectorEnv) -> PreTrainedTokenizerBase:
    """Return the environment's tokenizer as TRL wants one."""
    tokenizer = transformers_tokenizer(env.tokenizer)
    if tokenizer is None:
        raise ValueError(
            f"TRL needs a transformers tokenizer and the environment has a {type(env.tokenizer).__name__}; give it a "
            "CharTokenizer or a TransformersTokenizer, or set sft.num_steps=0."
        )
    return tokenizer
