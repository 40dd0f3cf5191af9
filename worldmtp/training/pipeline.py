"""A training run, stage by stage, in a directory from which it can be taken up again.

    config.yaml -> sft/model -> checkpoints/ -> artefacts/ -> model/ -> summary.json -> report.html -> DONE

Each stage leaves its result whole before the next one starts, so that a run that was killed goes on where it was, and
ends with the numbers of a run that was not. What a config gets wrong is found in the constructor, before any training.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from worldmtp.agents.evaluation import Evaluation, Evaluator
from worldmtp.agents.observation import check_replies
from worldmtp.agents.rollout import Rollout, Stopwatch
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.agents.uses import check_use
from worldmtp.analysis import write_report
from worldmtp.analysis.summary import RunSummary, write_summary
from worldmtp.checkpoint import CheckpointError
from worldmtp.decoding.drafts import make_drafter
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.dynamics import make_world_model
from worldmtp.envs.task import TurnTask
from worldmtp.model import MTPModel
from worldmtp.model.precision import computing_in
from worldmtp.random import stream_seed
from worldmtp.tracking import (
    METRICS_FILE,
    MetricWriter,
    MultiWriter,
    ProgressReporter,
    Stage,
    default_layout,
    read_records,
)
from worldmtp.tracking.scenes import SceneLog
from worldmtp.training.acting import check_acting, evaluation_search, search_notes
from worldmtp.training.closing import arm_name, closing_text, measured_note, notes_of_log, talk_command
from worldmtp.training.config import TrainConfig, hyperparameters
from worldmtp.training.evaluation import (
    Imagining,
    RunEvaluation,
    evaluate_between,
    evaluate_run,
    summarize,
    watch,
    write_evaluation,
    write_strips,
)
from worldmtp.training.exact_truth import ExactTruth
from worldmtp.training.head_split import write_head_split
from worldmtp.training.imagined_episodes import imagined_episodes, log_imagined_episodes, write_imagined_episodes
from worldmtp.training.imports import import_user_modules
from worldmtp.training.inside import InsideLog
from worldmtp.training.make import (
    check_completions,
    check_fits,
    check_imagination,
    check_objective,
    check_scores,
    make_env,
    make_model,
    model_notes,
    on_device,
    vocabulary,
)
from worldmtp.training.reinforce import CONFIG_TAG, StoppedEarly, load_last, reinforce
from worldmtp.training.run_dir import CONFIG_FILE, DONE_FILE, MODEL_FOLDER, RUN_LOG, RunResult, tell
from worldmtp.training.run_prompts import choose_pool, draw_run_prompts, write_shown
from worldmtp.training.saved_model import check_vocabulary, load_model, save_model, transformers_tokenizer
from worldmtp.training.trainers import make_trainer
from worldmtp.training.warm_start import warm_start

_STAGES = (Stage("warm start", 25.0), Stage("reinforce", 73.0), Stage("report", 2.0))


def execute(
    config: TrainConfig, run_dir: Path, at_start: Callable[[], None], kind: "type[Pipeline] | None" = None
) -> RunResult:
    """Run all stages of a ``kind`` of pipeline, None is ``Pipeline``, that ``run_dir`` does not hold yet.

    ``at_start`` is called when the config is found good, before the first file is written.
    """
    torch.set_num_threads(config.profile.num_threads)
    transformers.utils.logging.disable_progress_bar()  # of models written and read, which take no time here
    import_user_modules(config.imports)
    stages = _STAGES if config.sft.num_steps else _STAGES[1:]
    way_back = f"What is saved stays; go on with resume={run_dir}"
    try:
        with _writer(run_dir, config) as writer, ProgressReporter(stages, sys.stderr) as progress:
            pipeline = (kind or Pipeline)(config, run_dir, writer, progress)
            at_start()
            tell(pipeline.notes)
            exact = pipeline.run()
    except StoppedEarly as stop:
        RUN_LOG.info("%s", stop)
        return RunResult(run_dir, float("nan"), str(stop))
    except (KeyboardInterrupt, OSError, CheckpointError) as error:
        error.add_note(way_back)
        raise
    RUN_LOG.info("done\n%s", pipeline.closing)
    return RunResult(run_dir, exact, pipeline.closing, pipeline.summary)


def _writer(directory: Path, config: TrainConfig) -> MultiWriter:
    return MultiWriter.of_run(directory, config.logger.tensorboard, hyperparameters(config))


class Pipeline:
    """The stages of one run, in order.

    Raises:
        ValueError: environment, model, objective and imagination do not fit, or the task cannot fill a split.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, writer: MultiWriter, progress: ProgressReporter) -> None:
        self._config = config
        self._run_dir = run_dir
        self._writer = writer
        self._scenes = SceneLog(run_dir)
        self._progress = progress
        rollout = config.agent.rollout
        self._env = make_env(config.env, rollout.num_prompts * rollout.group_size, records=True)
        check_replies(self._env.task, config.agent.ppo)
        self._is_warm, self._model = self._first_model()
        check_fits(self._model.config, self._env)
        self._model.limit_tokens(self._env.tokenizer.vocab_size)
        check_objective(config.objective, self._model.config.depth)
        make_drafter(self._model, rollout.draft, rollout.num_draft, None)
        self._prompts = prompts = draw_run_prompts(self._env, config)
        held_out, self._examples = prompts.held_out, prompts.demonstrations
        self._env.dataset.encode([*held_out, *self._examples])  # that they fit is seen before anything reads them
        if not self._is_warm:
            check_scores(self._env, self._examples, self._model.config.value_range)
        self._overlap, notes = choose_pool(self._env, prompts, config)
        infos = self._env.reset(seed=config.seed)[1]
        check_use(self._env, infos, config.imagination, config.agent.ppo, rollout.draft, rollout.act)
        self._can_imagine = check_imagination(
            self._model, config.world_model.backend, config.imagination, config.agent.ppo
        )
        check_completions(self._model, self._env, config)
        check_acting(config, self._model, self._env)
        self._tokens_text = vocabulary(self._env)
        self._inside = InsideLog(self._model, run_dir, config.eval, self._tokens_text, self._computing)
        told = model_notes(config.model, self._model, self._is_warm)
        what = self._env.task, self._env.tokenizer, held_out, self._model.config.depth
        self._truth = ExactTruth(*what, rollout.temperature, config.agent.ppo.gamma)
        notes += search_notes(config)
        self.notes = (*told, *prompts.notes, *notes, *self._inside.notes, *self._truth.notes)
        asked = make_env(config.env, len(held_out)), held_out, rollout.temperature
        self._evaluator = Evaluator(*asked, stream_seed(config.seed, "evaluation"), evaluation_search(config))
        self._after: RunEvaluation | None = None
        self._analysis = Stopwatch()
        self._flat: str | None = None
        self.closing = ""
        self.summary: RunSummary | None = None

    def run(self) -> float:
        """Run all stages and return the exact match of the last evaluation."""
        step = self._saved_step()
        (self._run_dir / DONE_FILE).unlink(missing_ok=True)
        for log in (self._writer, self._scenes):
            log.resume_at(step)
        self._inside.remember_start()
        self._warm_start()
        before = self._evaluate_held_out()
        if step < 0:
            self._open_log(before)
        self._train()
        if self._after is None:
            # No iteration was left. A resumed run has the last evaluation in its log; one without iterations has not.
            self._after = self._evaluate_held_out()
            if step < 0:
                self._write_final(self._after, 0)
        save_model(self._model, self._run_dir / MODEL_FOLDER, transformers_tokenizer(self._env.tokenizer))
        self._close(before, self._after)
        return self._after.exact.estimate

    def _saved_step(self) -> int:
        """Read the last checkpoint, and return the step up to which the log belongs to it; -1 without one."""
        self._saved = load_last(self._run_dir)
        return -1 if self._saved is None else self._saved.step

    def _train(self) -> None:
        """Train from the last checkpoint on."""
        trainer = make_trainer(self._config, self._model, self._env, self._prompts)
        if self._saved is not None:
            trainer.load_state_dict(self._saved.trainer)
        self._evaluator.replies = trainer.replies
        with self._computing():
            reinforce(
                trainer,
                self._config.agent.rollout.num_iterations,
                self._run_dir,
                self._config.checkpoint,
                self._writer,
                lambda step: self._evaluate(trainer, step),
                lambda fraction, note: self._report("reinforce", fraction, note),
            )
        self._flat = trainer.flat_returns.note

    def _first_model(self) -> tuple[bool, MTPModel]:
        """Return the model after its warm start where that was done, here or in the run that ``sft.load`` names."""
        config, done = self._config, self._run_dir / "sft" / MODEL_FOLDER
        if config.sft.load is not None:
            done = Path(config.sft.load)
            if not done.is_dir():
                raise ValueError(f"sft.load={config.sft.load!r} is not a directory; give the sft/model of a run.")
            check_vocabulary(done, self._env.tokenizer, "sft.load")
        if done.is_dir():
            return True, on_device(load_model(done), config.profile)
        model = make_model(config.model, self._env, stream_seed(config.seed, "model"))
        return False, on_device(model, config.profile)

    @property
    def _start(self) -> str:
        """Return the name of the evaluation before the first iteration: of a warm start, or of the model as it came."""
        return "warm_start" if self._is_warm or self._examples else "start"

    def _warm_start(self) -> None:
        config, directory = self._config, self._run_dir / "sft"
        if self._is_warm or not self._examples:
            return
        write_shown(directory, self._prompts)
        with _writer(directory, config) as writer:
            warm_start(
                self._model,
                self._env,
                self._examples,
                config.sft,
                config.objective,
                directory,
                stream_seed(config.seed, "warm start") % 2**32,  # Hugging Face seeds numpy, too
                writer,
                lambda fraction, note: self._report("warm start", fraction, note),
                config.model.compute_dtype,
                lambda step: self._log_between(writer, directory, step),
            )
        on_device(self._model, config.profile)

    def _report(self, stage: str, fraction: float, note: str) -> None:
        self._progress.update(stage, fraction, note)
        RUN_LOG.info("%s: %s", stage, note)

    def _open_log(self, before: RunEvaluation) -> None:
        """Log what is known before the first iteration, at step 0."""
        if self._config.logger.tensorboard:
            self._writer.custom_layout(default_layout())
        config = (self._run_dir / CONFIG_FILE).read_text(encoding="utf-8")
        self._writer.text(CONFIG_TAG, f"```yaml\n{config}\n```", 0)
        self._writer.scalars({"rollout/prompt_overlap_sft": self._overlap}, 0)
        write_evaluation(before, self._run_dir, self._start, self._writer, 0)
        self._inside.write(before.evaluation.own, self._writer, self._run_dir, 0)
        self._log_heads(before, self._start, 0)
        self._watch(before.evaluation.own, 0)

    def _computing(self) -> torch.autocast:
        """Return the precision to compute in; the warm start has an autocast of its own."""
        return computing_in(self._config.model.compute_dtype, self._model.device)

    def _evaluate(self, trainer: ImaginationTrainer, step: int) -> float:
        """Evaluate before a checkpoint, so that a resumed log holds it once; return the seconds of analysis."""
        config, self._evaluator.replies = self._config, trainer.replies
        if trainer.iteration == config.agent.rollout.num_iterations:
            self._after = self._evaluate_held_out()
            self._write_final(self._after, step)
            self._show_imagined(trainer, self._after.evaluation.own, step, is_last=True)
        elif trainer.iteration % config.eval.every_iterations == 0:
            self._show_imagined(trainer, self._log_held_out(step).own, step, is_last=False)
        return self._analysis.take()

    def _log_held_out(self, step: int) -> Evaluation:
        """Evaluate between the first and the last time."""
        found = self._log_between(self._writer, self._run_dir, step)
        self._watch(found.own, step)
        return found

    def _log_between(self, writer: MetricWriter, directory: Path, step: int) -> Evaluation:
        """Evaluate into one log: answers, what the heads say of them, and what is inside the model."""
        start = time.perf_counter()
        with evaluation_mode(self._model), self._computing():
            found, metrics = evaluate_between(self._model, self._evaluator, self._env, self._tokens_text, writer, step)
            self._inside.write(found.own, writer, directory, step)
        writer.scalars(metrics | {"time/eval_seconds": time.perf_counter() - start}, step)
        return found

    def _show_imagined(self, trainer: ImaginationTrainer, held_out: Rollout, step: int, is_last: bool) -> None:
        """Log imagined episodes beside held-out ones, and keep the last for the report."""
        if trainer.episodes is None:
            return
        with self._computing(), self._analysis:
            seed = stream_seed(self._config.seed, "imagined episodes in evaluation")
            found = imagined_episodes(trainer.episodes, held_out, self._tokens_text, seed)
        if found is not None and is_last:
            write_imagined_episodes(found, self._run_dir, self._writer, step, self._config.logger.num_strips)
        elif found is not None:
            log_imagined_episodes(found, self._writer, step)

    def _write_final(self, after: RunEvaluation, step: int) -> None:
        write_evaluation(after, self._run_dir, "final", self._writer, step)
        self._inside.write(after.evaluation.own, self._writer, self._run_dir, step)
        self._log_heads(after, "final", step)
        write_strips(after, self._writer, step, self._config.logger.num_strips)
        self._watch(after.evaluation.own, step)

    def _imagining(self) -> Imagining:
        """Return how evaluations imagine; its draws are the same every time."""
        config = self._config
        generator = torch.Generator().manual_seed(stream_seed(config.seed, "placebo in evaluation"))
        return Imagining(
            make_world_model(config.world_model.backend, self._model, generator) if self._can_imagine else None,
            config.imagination.horizon,
            config.eval.num_imagined,
            stream_seed(config.seed, "imagination in evaluation"),
        )

    def _evaluate_held_out(self) -> RunEvaluation:
        with self._computing():
            found = self._evaluator.run(self._model)
            with self._analysis:
                how = self._imagining(), self._config.agent.ppo, self._tokens_text
                return evaluate_run(self._model, self._evaluator, found, *how)

    def _log_heads(self, found: RunEvaluation, name: str, step: int) -> None:
        """Log what the heads' loss is made of, with the truth where it is known; no mask is known of drawn states."""
        config, how = self._config, (name, self._writer, step)
        with self._computing(), self._analysis:
            self._truth.write(self._model, self._run_dir, *how)
            if step > 0 and config.trains_world_heads:  # before, nothing has taught the world heads
                self._truth.write_values(self._model, found.artefact, self._run_dir, *how)
            if not found.evaluation.own.is_masked:
                seed, end = stream_seed(config.seed, "futures in evaluation"), self._env.tokenizer.eos_id
                acting = config.agent.rollout.temperature, end, seed
                world_model = self._imagining().world_model
                write_head_split(self._model, world_model, found.artefact, *acting, self._writer, step)

    def _watch(self, sampled: Rollout, step: int) -> None:
        """Keep the first held-out answers for the Imagination tab."""
        config = self._config
        # Before the first iteration the world heads know nothing, and without imagination they never learn.
        learns = step > 0 and config.trains_world_heads
        how = (self._imagining(), config.agent.ppo, self._tokens_text, config.logger.num_strips, learns)
        with self._computing(), self._analysis:
            self._scenes.write(watch(self._model, self._evaluator, sampled, *how), step)

    def _method(self) -> tuple[str, str]:
        """Return what did the training after the warm start, and its arm in the closing table."""
        config = self._config
        return "PPO", arm_name(config.imagination.use, config.world_model.backend, config.agent.rollout.act)

    def _close(self, before: RunEvaluation, after: RunEvaluation) -> None:
        """Write the closing table, the report, and the mark that all is done."""
        config, warmed = self._config, self._start == "warm_start"
        method, arm = self._method()
        started = "SFT" if warmed else f"before {method}"
        self._writer.flush()
        records = read_records(self._run_dir / METRICS_FILE)
        trained = summarize(after, arm, "final")
        self.summary = summary = RunSummary(
            arms=(
                # Before the first iteration the world heads know nothing, and without imagination they never learn.
                replace(summarize(before, started, self._start), imagined_return=None),
                trained if config.trains_world_heads else replace(trained, imagined_return=None),
            ),
            # Of the log, whose clock goes on over a resumption.
            wall_clock_seconds=round(records[-1]["time_seconds"], 1),
            machine=f"{platform.machine()}, {os.cpu_count()} cores, {config.profile.num_threads} threads",
            notes=(
                f"{len(self._evaluator.examples)} held-out prompts of {config.env.id}, seed {config.seed}; "
                + measured_note(isinstance(self._env.task, TurnTask)),
                *([f"{self._overlap:.3f} of the training prompts are those of the warm start"] if warmed else []),
                *self.notes,
                *([] if self._flat is None else [self._flat]),
                *notes_of_log(records, config.imagination, config.agent.rollout),
            ),
        )
        write_summary(summary, self._run_dir)
        self._progress.update("report", 0.1)
        report = write_report(self._run_dir)
        (self._run_dir / DONE_FILE).touch()
        self._progress.update("report", 1.0)
        talk = talk_command(self._model, self._env, config.env.id, self._run_dir, self._prompts.held_out[0].prompt)
        self.closing = closing_text(summary, self._run_dir, report, talk)
