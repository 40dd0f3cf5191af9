"""A study in place of a training run, in the same kind of run directory: its config, what it found, the mark DONE."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from worldmtp.studies.protocol import STUDIES, Study, make_study
from worldmtp.studies.runner import STAGES, TEXT_FILE, StudyError, read_headline, run_study
from worldmtp.tracking import ProgressReporter, Stage
from worldmtp.training.config import TrainConfig
from worldmtp.training.imports import import_user_modules
from worldmtp.training.run_dir import DONE_FILE, RunResult

_WEIGHTS = dict(zip(STAGES, (15.0, 85.0), strict=True))


def execute_study(config: TrainConfig, run_dir: Path, at_start: Callable[[], None]) -> RunResult:
    """Run what ``run_dir`` does not hold yet and summarise.

    ``at_start`` is called when the config is found good, before the first file is written.

    Raises:
        ValueError: no such study, or its fields cannot be.
        TypeError: a field is of the wrong type.
        StudyError: arms failed; the message names them.
    """
    torch.set_num_threads(config.profile.num_threads)
    import_user_modules(config.imports)
    study = _make(config)
    at_start()
    (run_dir / DONE_FILE).unlink(missing_ok=True)
    way_back = f"What is saved stays; go on with resume={run_dir}"
    try:
        with ProgressReporter([Stage(name, weight) for name, weight in _WEIGHTS.items()], sys.stderr) as progress:
            setup = partial(import_user_modules, config.imports)
            summary = run_study(study, run_dir, config.profile.num_jobs, progress.update, setup)
    except (KeyboardInterrupt, OSError, StudyError) as error:
        error.add_note(way_back)
        raise
    (run_dir / DONE_FILE).touch()
    return RunResult(run_dir, summary.headline, _findings(run_dir))


def finished_study(run_dir: Path) -> RunResult:
    """Return what a study that is done has found."""
    return RunResult(run_dir, read_headline(run_dir), _findings(run_dir))


def _make(config: TrainConfig) -> Study:
    if config.seed != 0:
        raise ValueError(f"seed={config.seed}: a study has seeds of its own; set study.seeds=[{config.seed}].")
    if config.profile.device != "cpu":
        raise ValueError(f"profile.device={config.profile.device!r}: studies run on the CPU; use profile=cpu.")
    values = dict(config.study)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"study.name={name!r} must be one of {sorted(STUDIES)}; choose by study=... or experiment=...")
    return make_study(name, values)


def _findings(run_dir: Path) -> str:
    return f"{(run_dir / TEXT_FILE).read_text(encoding='utf-8')}\n{run_dir}"
