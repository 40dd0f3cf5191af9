"""Taking a run up again: its own config, and the few values that may differ without making it another run.

Overrides are read by Hydra's own grammar, so that one means here what it means for a new run.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from worldmtp.cli.analyze import jobs_of, sweep_table
from worldmtp.cli.schema import twin
from worldmtp.training.config import TrainConfig
from worldmtp.training.run_dir import CONFIG_FILE, is_done, read_saved
from worldmtp.training.runs import MAY_DIFFER, check_iterations, may_differ

_GROUPS = ("logger", "profile")
_KEY = "resume="


def resume_argument(arguments: Sequence[str]) -> tuple[Path, list[str]] | None:
    """Return the run directory that ``resume=`` names, and the other arguments; None without one."""
    named, others = [], []
    for argument in arguments:
        bare = argument.lstrip("+")
        if bare.startswith(_KEY):
            named.append(bare.removeprefix(_KEY))
        else:
            others.append(argument)
    if not named or named[-1] in ("", "null"):
        return None
    return Path(named[-1]), others


def resumed_config(run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the config of a run with overrides. A study that is done may be resumed: it is summarised anew.

    Raises:
        ValueError: there is no run, it is done, or an override would make it another run.
        HydraException: an override is not of Hydra's grammar, or its value is not of the field's type.
    """
    saved = saved_config(run_dir)
    if is_done(run_dir) and not overrides and not saved.get("study"):
        is_agent = not saved.get("post_training", {}).get("trainer")  # a trainer of TRL has its steps in its schedule
        further = "raise agent.rollout.num_iterations to go further, or " if is_agent else ""
        raise ValueError(f"resume={run_dir}: this run is done; {further}read its report.html.")
    flags = [argument for argument in overrides if argument.startswith("-")]
    parsed = [] if flags else OverridesParser.create().parse_overrides(list(overrides))
    refused = flags or [str(override.input_line) for override in parsed if not _may_differ(override)]
    if refused:
        raise ValueError(
            f"resume={run_dir} goes on with the run as it was, so {refused} cannot be given; only values of "
            f"{', '.join(MAY_DIFFER)} may differ. Start a new run instead."
        )
    config = OmegaConf.merge(OmegaConf.structured(twin(TrainConfig)), saved)
    assert isinstance(config, DictConfig)  # a structured config merged with a mapping
    config.checkpoint.stop_after = None  # a stop is not repeated
    for override in parsed:
        _apply(override, config)
    check_iterations(run_dir, int(config.agent.rollout.num_iterations))
    return config


def saved_config(run_dir: Path) -> DictConfig:
    """Return the config of the run in ``run_dir``, as ``claim`` wrote it; settings it is too old for are completed.

    Raises:
        ValueError: there is none, or it is damaged; the message names the jobs of a sweep that is there.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        jobs = jobs_of(run_dir)
        if jobs:
            raise ValueError(
                f"resume={run_dir} is the directory of a sweep; go on with one of its jobs:\n\n{sweep_table(run_dir)}"
            )
        raise ValueError(
            f"resume={run_dir}: no {CONFIG_FILE} there; give the directory of a run, as printed at its end."
        )
    return OmegaConf.create(read_saved(path))


def _may_differ(override: Override) -> bool:
    key = override.key_or_group
    # A group, as in profile=gpu, would need Hydra's composition; its values do not.
    is_value = override.package is None and (key not in _GROUPS or isinstance(override.value(), dict))
    is_one = not override.is_delete() and not override.is_sweep_override()
    return is_value and is_one and may_differ(key)


def _apply(override: Override, config: DictConfig) -> None:
    """Set one value as Hydra does: ``+`` adds to lists and mappings, ``++`` adds or sets."""
    key, value = override.key_or_group, override.value()
    if override.is_add() and not isinstance(value, dict | list) and OmegaConf.select(config, key) is not None:
        raise ValueError(f"{override.input_line} adds what is there already; leave the + out to change it.")
    try:
        OmegaConf.update(config, key, value, merge=True)
    except OmegaConfBaseException as error:
        raise HydraException(f"Could not override '{key}' by {override.input_line}.") from error
