"""Taking a run up again: its own config, and the few values that may differ without making it another run."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from worldmtp.cli.run_dir import CONFIG_FILE, is_done
from worldmtp.cli.schema import TrainConfig, twin

_MAY_DIFFER = ("logger", "profile", "checkpoint", "agent.rollout.num_iterations", "imports")
_KEY = "resume="


def resume_argument(arguments: Sequence[str]) -> tuple[Path, list[str]] | None:
    """The run directory that a command line's ``resume=`` names, and its other arguments; None without one."""
    named = [argument.removeprefix(_KEY) for argument in arguments if argument.startswith(_KEY)]
    if not named or named[-1] in ("", "null"):
        return None
    return Path(named[-1]), [argument for argument in arguments if not argument.startswith(_KEY)]


def resumed_config(run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The config of ``run_dir`` with ``overrides``. A study that is done may be resumed: it is summarised anew.

    Raises:
        ValueError: there is no run, it is done, or an override would make it another run.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ValueError(
            f"resume={run_dir}: no {CONFIG_FILE} there; give the directory of a run, as printed at its end."
        )
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)  # as ``claim`` wrote it
    if is_done(run_dir) and not overrides and not saved.get("study"):
        raise ValueError(
            f"resume={run_dir}: this run is done; raise agent.rollout.num_iterations to go further, or read its "
            "report.html."
        )
    refused = [override for override in overrides if not _may_differ(override)]
    if refused:
        raise ValueError(
            f"resume={run_dir} goes on with the run as it was, so {refused} cannot be given; only values of "
            f"{', '.join(_MAY_DIFFER)} may differ. Start a new run instead."
        )
    given = OmegaConf.from_dotlist(list(overrides))
    config = OmegaConf.merge(OmegaConf.structured(twin(TrainConfig)), saved, given)
    assert isinstance(config, DictConfig)  # a structured config merged with two mappings
    config.checkpoint.stop_after = OmegaConf.select(given, "checkpoint.stop_after")
    return config


def _may_differ(override: str) -> bool:
    key, equals, _ = override.partition("=")
    # A group, as in profile=gpu, would need Hydra's composition; its values do not.
    is_value = bool(equals) and key not in ("logger", "profile", "checkpoint")
    return is_value and any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)
