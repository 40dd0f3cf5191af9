"""How the console scripts start: the config tree, the user's own directories before it, errors without a traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from worldmtp.analysis import ArtefactError
from worldmtp.checkpoint import CheckpointError
from worldmtp.cli.hints import flat_keys, nearest_hint
from worldmtp.cli.schema import TrainConfig, twin

CONFIG_TREE = "pkg://worldmtp.configs"
CONFIG_PATH_VARIABLE = "WORLDMTP_CONFIG_PATH"

EXPECTED_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    FloatingPointError,
    CheckpointError,
    ArtefactError,
    OmegaConfBaseException,
)
"""Errors whose message is written for the user; anything else is a defect and keeps its traceback."""


class UserConfigDirectories(SearchPathPlugin):
    """Directories of $WORLDMTP_CONFIG_PATH come first, so that a file there replaces the shipped one of its name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend them, the first named the first searched."""
        for directory in reversed(os.environ.get(CONFIG_PATH_VARIABLE, "").split(os.pathsep)):
            if directory:
                search_path.prepend(provider=CONFIG_PATH_VARIABLE, path=f"file://{Path(directory).resolve()}")


def register() -> None:
    """Make the schema and the user's directories known to Hydra; harmless to repeat."""
    ConfigStore.instance().store(name="train_schema", node=twin(TrainConfig))
    plugins = Plugins.instance()
    if UserConfigDirectories not in plugins.discover(SearchPathPlugin):
        plugins.register(UserConfigDirectories)


def launch(task: Callable[[DictConfig], float | None], config_name: str) -> None:
    """Run ``task`` under Hydra with this process's arguments; an expected error ends with its message and code 1."""
    register()
    shows_tracebacks = bool(os.environ.get("HYDRA_FULL_ERROR"))
    # Else Hydra prints and exits by itself, and nobody can add what was probably meant.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    decorated = hydra.main(version_base="1.3", config_path=CONFIG_TREE, config_name=config_name)(task)
    try:
        decorated()
    except HydraException as error:
        if shows_tracebacks:
            raise
        hint = nearest_hint(str(error), sys.argv[1:], _known_keys(config_name))
        _exit(f"{error}\n{hint}" if hint else str(error))
    except EXPECTED_ERRORS as error:
        if shows_tracebacks:
            raise
        _exit(str(error))


def fail_cleanly(action: Callable[[], None]) -> None:
    """Run ``action``; an expected error ends with its message and code 1, as under ``launch``."""
    try:
        action()
    except EXPECTED_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        _exit(str(error))


def _known_keys(config_name: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("worldmtp.configs", version_base="1.3"):
        return flat_keys(hydra.compose(config_name))


def _exit(message: str) -> None:
    print(f"error: {message}\n(HYDRA_FULL_ERROR=1 shows the traceback.)", file=sys.stderr)
    sys.exit(1)


def as_yaml(config: DictConfig) -> str:
    """The resolved config as text."""
    return OmegaConf.to_yaml(config, resolve=True)
