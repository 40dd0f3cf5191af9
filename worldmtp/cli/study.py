"""A study in place of a training run, in the same kind of run directory: its config, what it found, the mark DONE."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from worldmtp.cli.imports import import_user_modules
from worldmtp.cli.run_dir import DONE_FILE
from worldmtp.cli.schema import TrainConfig
from worldmtp.studies.protocol import STUDIES, Study, make_study
from worldmtp.studies.runner import STAGES, TEXT_FILE, StudyError, read_headline, run_study
from worldmtp.tracking import ProgressReporter, Stage

_WEIGHTS = dict(zip(STAGES, (15.0, 85.0), strict=True))


def execute_study(config: TrainConfig, run_dir: Path, at_start: Callable[[], None]) -> float:
    """Run what ``run_dir`` does not hold yet and summarise; the study's headline.

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
    except KeyboardInterrupt:
        print(f"\ninterrupted. {way_back}", file=sys.stderr)
        raise SystemExit(130) from None
    except (OSError, StudyError) as error:
        error.add_note(way_back)
        raise
    (run_dir / DONE_FILE).touch()
    _print_findings(run_dir)
    return summary.headline


def finished_study(run_dir: Path) -> float:
    """The headline of a study that is done; what it found is printed."""
    _print_findings(run_dir)
    return read_headline(run_dir)


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


def _print_findings(run_dir: Path) -> None:
    print(f"\n{(run_dir / TEXT_FILE).read_text(encoding='utf-8')}\n{run_dir}")
