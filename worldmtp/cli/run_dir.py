"""The directory of one run: who may write there, its config, and the mark that it is done."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

CONFIG_FILE = "config.yaml"
DONE_FILE = "DONE"


def claim(run_dir: Path, node: DictConfig, resumes: bool) -> None:
    """Make the directory, and put the resolved config there whole or not at all.

    A directory that holds a run of just this config is taken up again, as a sweep started once more wants it.

    Raises:
        ValueError: it cannot be written, or it holds another run and ``resumes`` is False.
    """
    text = OmegaConf.to_yaml(node, resolve=True)
    path = run_dir / CONFIG_FILE
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not resumes and path.exists() and path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{run_dir} already holds a run with another config. Go on with that one by resume={run_dir}, or "
                "choose another directory with hydra.run.dir=..."
            )
        temporary = path.with_suffix(".yaml.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"the run directory {run_dir} cannot be written ({error}); choose another with hydra.run.dir=..."
        ) from error


def is_done(run_dir: Path) -> bool:
    """Whether the run in it reached its end."""
    return (run_dir / DONE_FILE).exists()
