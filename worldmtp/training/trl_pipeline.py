"""A run that one of TRL's trainers trains, in the place of the project's own agent: the other stages are the same.

    config.yaml -> sft/model -> post_training/ -> artefacts/ -> model/ -> summary.json -> report.html -> DONE

Steps of its log are optimiser steps.
"""

from pathlib import Path

from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.tracking import MultiWriter, ProgressReporter
from worldmtp.training.config import TrainConfig
from worldmtp.training.make import on_device
from worldmtp.training.pipeline import Pipeline
from worldmtp.training.trl_log import StepCallback
from worldmtp.training.trl_stage import TrainerStage


class TRLPipeline(Pipeline):
    """The stages of a run with ``post_training.trainer``.

    Raises:
        ValueError: as of ``Pipeline``, or the trainer's options do not fit it or the environment.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, writer: MultiWriter, progress: ProgressReporter) -> None:
        super().__init__(config, run_dir, writer, progress)
        # Without imagination the heads of reward and end learn nothing here.
        self._can_imagine = self._can_imagine and config.imagination.reads_latents
        self._stage = TrainerStage(config, self._env, run_dir)
        self._stage.check_prompts()

    def _saved_step(self) -> int:
        return self._stage.saved_step()

    def _train(self) -> None:
        callback = StepCallback(
            self._writer,
            lambda fraction, note: self._report("reinforce", fraction, note),
            self._evaluate_after,
            self._config.checkpoint.stop_after,
            self._run_dir,
        )
        self._stage.train(self._model, callback)
        on_device(self._model, self._config.profile)

    def _evaluate_after(self, step: int) -> float:
        """Evaluate after a step and before its checkpoint, so that a resumed log holds it once.

        Returns the seconds that went into analysis.
        """
        is_last = step == self._config.post_training.num_steps
        if not is_last and step % self._config.eval.every_iterations:
            return 0.0
        with evaluation_mode(self._model):
            if is_last:
                self._after = self._evaluate_held_out()
                self._write_final(self._after, step)
            else:
                with self._computing():
                    self._log_held_out(step)
        return self._analysis.take()

    def _method(self) -> tuple[str, str]:
        heads = self._stage.args.build_objective().coef.start
        name, use = self._stage.name.upper(), self._config.imagination.use
        imagines = "" if use == "off" else f", {use}"
        return name, f"{name}, TRL{imagines}, heads' lambda {heads:g}"
