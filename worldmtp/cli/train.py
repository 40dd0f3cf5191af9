"""``worldmtp train``: warm start, PPO with imagination, held-out evaluation, analysis, in one resumable run directory.

    worldmtp train experiment=quickstart
    worldmtp train env=spell_backward imagination=off agent.ppo.learning_rate=1e-4 seed=1
    worldmtp train head=latent objective=nextlat model.depth=6
    worldmtp train experiment=head_families profile.num_jobs=2
    worldmtp train resume=runs/quickstart/2026-01-31_12-00-00_seed0

Here Hydra composes the config; the run is ``worldmtp.training.run``. Nothing imports torch before it starts, so that
``--help`` and ``--cfg job`` answer at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from worldmtp.cli.analyze import sweep_table
from worldmtp.cli.errors import TRACEBACK_VARIABLE, fail_cleanly, message_of, shows_traceback
from worldmtp.cli.resume import resume_argument, resumed_config
from worldmtp.cli.schema import CONFIG_TREE, build, register
from worldmtp.training import TrainConfig
from worldmtp.training import run as run_config
from worldmtp.training.run_dir import CONFIG_FILE, RunDirError, discard_failed_start, run_log


def main() -> None:
    """Run the command."""
    resumed = resume_argument(sys.argv[1:])
    if resumed is None:
        sweeps: set[Path] = set()

        def task(config: DictConfig) -> float:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                sweeps.add(Path(HydraConfig.get().sweep.dir))
            return _train(config)

        try:
            launch(task)
        finally:  # after failures too: the other jobs' results are there
            for sweep_dir in sweeps:
                print(f"\n{sweep_table(sweep_dir)}")
    else:
        run_dir, overrides = resumed
        fail_cleanly(lambda: _resume(run_dir, overrides))


def _train(config: DictConfig) -> float:
    if config.resume is not None:
        raise ValueError(f"resume={config.resume} stands in a config file; give it on the command line.")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        return run(config, run_dir)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # The other jobs go on, and at their end Hydra raises the first failure alone.
            print(f"error in {run_dir}: {message_of(error)}", file=sys.stderr)
            if not (run_dir / CONFIG_FILE).exists():  # a start that failed; in a sweep its log is kept
                with run_log(run_dir):
                    raise
        raise


def _resume(run_dir: Path, overrides: Sequence[str]) -> float:
    return run(resumed_config(run_dir, overrides), run_dir, resumes=True)


def run(node: DictConfig, run_dir: Path, resumes: bool = False) -> float:
    """Train by a composed config and print what came of it; return the headline, which sweepers read.

    Raises:
        ValueError: the config cannot be trained: the message says what was given, what is expected and what to do.
    """
    try:
        config = build(TrainConfig, node)
    except Exception:
        discard_failed_start(run_dir)
        raise
    try:
        result = run_config(config, run_dir, resumes=resumes)
    except KeyboardInterrupt as interrupt:
        print("\n" + " ".join(["interrupted.", *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
        raise SystemExit(130) from None
    print(f"\n{result.closing}")
    return result.headline


def launch(task: Callable[[DictConfig], float | None]) -> None:
    """Run ``task`` under Hydra with this process's arguments; an expected error ends with its message and code 1."""
    register()
    sys.argv[1:] = flags_first(sys.argv[1:])
    with_traceback = shows_traceback()
    # Else Hydra prints and exits by itself, and nobody can add what was probably meant.
    os.environ[TRACEBACK_VARIABLE] = "1"
    decorated = hydra.main(version_base="1.3", config_path=CONFIG_TREE, config_name="train")(task)

    def start() -> None:
        try:
            decorated()
        except (OSError, RunDirError) as error:
            if not hasattr(error, "__notes__"):  # not from a run, which says how it is taken up again
                error.add_note("Output goes where hydra.run.dir=... and hydra.sweep.dir=... choose.")
            raise

    fail_cleanly(start, with_traceback)


_FLAGS_WITH_VALUE = (
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--package", "-p", "--cfg", "-c", "--experimental-rerun"),
)
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the command line with Hydra's flags before the overrides.

    Hydra's parser takes overrides that stand behind a flag for unknown arguments where others stand before it.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
        elif argument in ("--info", "-i"):  # its value is optional, and an override that follows would be taken for it
            flags.append(f"--info={rest.pop(0) if rest and rest[0] in _INFO else 'all'}")
        else:
            flags.append(argument)
            if argument in _FLAGS_WITH_VALUE and rest:
                flags.append(rest.pop(0))
    return flags + overrides
