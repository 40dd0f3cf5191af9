"""Taking a run up again: its own config, and the few values that may differ without making it another run."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from worldmtp.cli.schema import TrainConfig, twin

_MAY_DIFFER = ("logger.", "profile.", "checkpoint.", "agent.rollout.num_iterations", "imports")


def resumed_config(run_dir: Path, overrides: list[str]) -> DictConfig:
    """The config of ``run_dir`` with ``overrides``.

    Raises:
        ValueError: there is no run, it is done, or an override would make it another run.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"resume={run_dir}: no config.yaml there; give the directory of a run, as printed at its end.")
    if (run_dir / "DONE").exists() and not overrides:
        raise ValueError(
            f"resume={run_dir}: this run is done; raise agent.rollout.num_iterations to go further, or read its "
            "report.html."
        )
    refused = [override for override in overrides if not override.startswith(_MAY_DIFFER)]
    if refused:
        raise ValueError(
            f"resume={run_dir} goes on with the run as it was, so {refused} cannot be given; only "
            f"{', '.join(_MAY_DIFFER)} may differ. Start a new run instead."
        )
    schema = OmegaConf.structured(twin(TrainConfig))
    config = OmegaConf.merge(schema, OmegaConf.load(path), OmegaConf.from_dotlist(overrides))
    assert isinstance(config, DictConfig)
    config.checkpoint.stop_after = OmegaConf.from_dotlist(overrides).get("checkpoint", {}).get("stop_after")
    return config
