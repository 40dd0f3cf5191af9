"""``worldmtp-train``: warm start, PPO with imagination, held-out evaluation, analysis, in one resumable run directory.

    worldmtp-train experiment=quickstart
    worldmtp-train env=spell_backward imagination=off agent.ppo.learning_rate=1e-4 seed=1
    worldmtp-train resume=runs/quickstart/2026-01-31_12-00-00_seed0

A run directory holds config.yaml (resolved), metrics.jsonl, tensorboard/, sft/model, checkpoints/, artefacts/, model/,
summary.json and report.html; DONE is written last. Each stage leaves its result whole before the next one starts, so
a run that was killed goes on where it was.
"""

import os
import platform
import sys
import time
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from worldmtp.agents.evaluation import Evaluator
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.analysis import write_report
from worldmtp.analysis.summary import RunSummary, summary_table, write_summary
from worldmtp.cli.held_out import Judgement, judge, summarize, write_judgement, write_strips
from worldmtp.cli.launch import as_yaml, fail_cleanly, launch, register
from worldmtp.cli.make import import_user_modules, make_env, make_model, on_device, vocabulary
from worldmtp.cli.reinforce import StoppedEarly, load_last, reinforce
from worldmtp.cli.resume import resumed_config
from worldmtp.cli.schema import TrainConfig, build
from worldmtp.cli.warm_start import demonstrations, save_model, warm_start
from worldmtp.dynamics import make_world_model
from worldmtp.envs import prompt_overlap
from worldmtp.model import MTPModel
from worldmtp.tracking import (
    JsonlWriter,
    MultiWriter,
    ProgressReporter,
    Stage,
    default_layout,
    tensorboard_command,
)

CONFIG_FILE, DONE_FILE = "config.yaml", "DONE"
RETURN_RANGE = (0.0, 1.0)
"""Scores of a text environment lie in [0, 1], and an episode is paid once."""

_STAGES = (Stage("warm start", 25), Stage("reinforce", 65), Stage("evaluate", 8), Stage("report", 2))


def main() -> None:
    """Console script."""
    directories = [argument.partition("=")[2] for argument in sys.argv[1:] if argument.startswith("resume=")]
    if directories:
        others = [argument for argument in sys.argv[1:] if not argument.startswith("resume=")]
        fail_cleanly(lambda: _resume(Path(directories[-1]), others))
    else:
        launch(_train, "train")


def _train(config: DictConfig) -> float:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    return run(config, run_dir)


def _resume(run_dir: Path, overrides: list[str]) -> None:
    register()
    run(resumed_config(run_dir, overrides), run_dir)


def run(node: DictConfig, run_dir: Path) -> float:
    """Train to the end; the held-out exact match, for sweepers.

    Raises:
        ValueError: the config cannot be: the message says what was given, what is expected and what to do.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG_FILE).write_text(as_yaml(node), encoding="utf-8")
    config = build(TrainConfig, node)
    torch.set_num_threads(config.profile.num_threads)
    import_user_modules(config.imports)
    with _writer(run_dir, config.logger.tensorboard) as writer, ProgressReporter(_STAGES, sys.stderr) as progress:
        pipeline = _Pipeline(config, run_dir, writer, progress)
        try:
            exact = pipeline.run()
        except StoppedEarly as stop:
            print(stop)
            return float("nan")
    print(f"\n{pipeline.closing}")
    return exact


def _writer(directory: Path, tensorboard: bool) -> MultiWriter:
    directory.mkdir(parents=True, exist_ok=True)
    return MultiWriter(directory) if tensorboard else MultiWriter(directory, [JsonlWriter(directory)])


class _Pipeline:
    """The stages of one run, in order."""

    def __init__(self, config: TrainConfig, run_dir: Path, writer: MultiWriter, progress: ProgressReporter) -> None:
        self._config = config
        self._run_dir = run_dir
        self._writer = writer
        self._progress = progress
        self._start = time.monotonic()
        rollout = config.agent.rollout
        self._env = make_env(config.env, rollout.num_prompts * rollout.group_size)
        held_out = self._env.examples("heldout", config.eval.num_prompts, config.seed)
        self._evaluator = Evaluator(make_env(config.env, len(held_out)), held_out, rollout.temperature, config.seed)
        self._tokens_text = vocabulary(self._env)
        self._overlap = 0.0
        self.closing = ""

    def run(self) -> float:
        """All stages."""
        saved = load_last(self._run_dir)
        self._writer.resume_at(-1 if saved is None else saved.step)
        model = self._warm_start()
        before = self._judge(model)
        if saved is None:
            self._open_log(before)
        trainer = self._trainer(model)
        if saved is not None:
            trainer.load_state_dict(saved.trainer)
        reinforce(
            trainer,
            self._config.agent.rollout.num_iterations,
            self._run_dir,
            self._config.checkpoint,
            self._writer,
            lambda step: self._evaluate(trainer, step),
            lambda fraction, note: self._progress.update("reinforce", fraction, note),
        )
        self._progress.update("evaluate", 0.1)
        after, step = self._judge(model), int(trainer.totals["env/tokens"])
        write_judgement(after, self._run_dir, "final", self._writer, step)
        write_strips(after, self._writer, step, self._config.logger.num_strips)
        save_model(model, self._run_dir / "model")
        self._close(before, after)
        return after.exact.estimate

    def _open_log(self, before: Judgement) -> None:
        """What is known before the first iteration, at step 0."""
        if self._config.logger.tensorboard:
            self._writer.custom_layout(default_layout())
        config = (self._run_dir / CONFIG_FILE).read_text(encoding="utf-8")
        self._writer.text("run/config", f"```yaml\n{config}\n```", 0)
        self._writer.scalars({"eval/prompt_overlap": self._overlap}, 0)
        write_judgement(before, self._run_dir, "warm_start", self._writer, 0)

    def _warm_start(self) -> MTPModel:
        config, directory = self._config, self._run_dir / "sft"
        done = directory / "model"
        if config.sft.load is not None:
            done = Path(config.sft.load)
            if not done.is_dir():
                raise ValueError(f"sft.load={config.sft.load!r} is not a directory; give the sft/model of a run.")
        examples = demonstrations(self._env, config.sft, config.seed) if config.sft.num_steps else []
        self._overlap = max(prompt_overlap(examples, self._evaluator.examples), self._env.overlap())
        if done.is_dir():
            return on_device(MTPModel.from_pretrained(done), config.profile)
        model = on_device(make_model(config.model, self._env, config.seed, RETURN_RANGE), config.profile)
        if config.sft.num_steps:
            with _writer(directory, config.logger.tensorboard) as writer:
                warm_start(
                    model,
                    self._env,
                    examples,
                    config.sft,
                    directory,
                    config.seed,
                    writer,
                    lambda fraction, note: self._progress.update("warm start", fraction, note),
                )
        return on_device(model, config.profile)

    def _trainer(self, model: MTPModel) -> ImaginationTrainer:
        config = self._config
        return ImaginationTrainer(
            model,
            self._env,
            config.agent.rollout,
            config.agent.ppo,
            config.world_model,
            config.imagination,
            config.seed,
        )

    def _evaluate(self, trainer: ImaginationTrainer, step: int) -> None:
        if trainer.iteration % self._config.eval.every_iterations == 0:
            start = time.perf_counter()
            metrics = self._evaluator.run(trainer.model).metrics()
            self._writer.scalars(metrics | {"time/eval_seconds": time.perf_counter() - start}, step)

    def _judge(self, model: MTPModel) -> Judgement:
        config = self._config
        generator = torch.Generator().manual_seed(config.seed)
        return judge(
            model,
            self._evaluator,
            make_world_model(config.world_model.backend, model, generator),
            config.imagination.horizon,
            config.eval.num_imagined,
            config.agent.ppo,
            self._tokens_text,
            config.seed,
        )

    def _close(self, before: Judgement, after: Judgement) -> None:
        config, use = self._config, self._config.imagination.use
        arm = "PPO, no imagination" if use == "off" else f"PPO, {use}, {config.world_model.backend}"
        summary = RunSummary(
            arms=(summarize(before, "SFT", "warm_start"), summarize(after, arm, "final")),
            wall_clock_seconds=round(time.monotonic() - self._start, 1),
            machine=f"{platform.machine()}, {os.cpu_count()} cores, {config.profile.num_threads} threads",
            notes=(
                f"{config.eval.num_prompts} held-out prompts, greedy; sampled exact match "
                f"{before.metrics['eval/exact_sampled']:.3f} (SFT), {after.metrics['eval/exact_sampled']:.3f} (PPO)",
                f"{config.env.id}, seed {config.seed}",
            ),
        )
        write_summary(summary, self._run_dir)
        self._writer.flush()
        self._progress.update("report", 0.1)
        report = write_report(self._run_dir)
        (self._run_dir / DONE_FILE).touch()
        self._progress.update("report", 1.0)
        self.closing = "\n".join(
            [
                summary_table(summary),
                *summary.notes,
                f"{summary.wall_clock_seconds:.0f} s in {self._run_dir}",
                f"report:      {report}",
                f"tensorboard: {tensorboard_command(self._run_dir)}",
            ]
        )
