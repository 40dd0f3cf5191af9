"""How the console scripts start: the config tree, the user's own directories before it, errors without a traceback.

Nothing here imports torch before a task runs, so that ``--help`` and ``--cfg job`` answer at once.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import gymnasium
import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import worldmtp.envs  # noqa: F401 - registers
from worldmtp.cli import clean_exit
from worldmtp.cli.clean_exit import TRACEBACK_VARIABLE, exit_cleanly, message_of
from worldmtp.cli.hints import explain, flat_keys
from worldmtp.cli.schema import twin
from worldmtp.training.config import TrainConfig

CONFIG_TREE = "pkg://worldmtp.configs"
CONFIG_PATH_VARIABLE = "WORLDMTP_CONFIG_PATH"


class UserConfigDirectories(SearchPathPlugin):
    """Directories of $WORLDMTP_CONFIG_PATH come first, so that a file there replaces the shipped one of its name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend them, the first named the first searched.

        Raises:
            ValueError: one is not a directory.
        """
        named = [name for name in os.environ.get(CONFIG_PATH_VARIABLE, "").split(os.pathsep) if name]
        for name in reversed(named):
            directory = Path(name).expanduser().resolve()
            if not directory.is_dir():
                raise ValueError(
                    f"{CONFIG_PATH_VARIABLE} names {name!r}, which is not a directory; expected directories of config "
                    f"groups, separated by {os.pathsep!r}."
                )
            search_path.prepend(provider=CONFIG_PATH_VARIABLE, path=f"file://{directory}")


def register() -> None:
    """Make the schema and the user's directories known to Hydra; harmless to repeat."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=twin(TrainConfig))
    with_settings = {
        entry.name.removesuffix(".yaml") for entry in (resources.files("worldmtp.configs") / "env").iterdir()
    }
    for env_id in (one for one in gymnasium.registry if one.startswith("worldmtp/")):
        # Hydra would merge a file of the same name with this one.
        if option_name(env_id) not in with_settings:
            store.store(group="env", name=option_name(env_id), node={"id": env_id, "kwargs": {}})
    OmegaConf.register_new_resolver("config_digest", _digest_of_task, replace=True)
    plugins = Plugins.instance()
    if UserConfigDirectories not in plugins.discover(SearchPathPlugin):
        plugins.register(UserConfigDirectories)


def option_name(env_id: str) -> str:
    """Return the name that chooses a registered environment: ``spell_backward`` of ``worldmtp/SpellBackward-v0``."""
    name = env_id.rpartition("/")[2].rpartition("-v")[0]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _digest_of_task(*, _root_: DictConfig) -> str:
    """Return ``${config_digest:}``: eight hexadecimal digits of the config, whatever the order of its keys.

    Jobs of a sweep are named by it, so that a value is found again wherever it stands on the command line.
    """
    config = OmegaConf.masked_copy(_root_, [key for key in map(str, _root_) if key != "hydra"])
    return hashlib.sha256(OmegaConf.to_yaml(config, resolve=True, sort_keys=True).encode()).hexdigest()[:8]


def launch(task: Callable[[DictConfig], float | None], config_name: str) -> None:
    """Run ``task`` under Hydra with this process's arguments; an expected error ends with its message and code 1."""
    register()
    sys.argv[1:] = flags_first(sys.argv[1:])
    shows_traceback = clean_exit.shows_traceback()
    # Else Hydra prints and exits by itself, and nobody can add what was probably meant.
    os.environ[TRACEBACK_VARIABLE] = "1"
    decorated = hydra.main(version_base="1.3", config_path=CONFIG_TREE, config_name=config_name)(task)

    def start() -> None:
        try:
            decorated()
        except OSError as error:
            if not hasattr(error, "__notes__"):  # not from a run, which says how it is taken up again
                error.add_note("Output goes where hydra.run.dir=... and hydra.sweep.dir=... choose.")
            raise

    fail_cleanly(start, shows_traceback)


_FLAGS_WITH_VALUE = (
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--package", "-p", "--cfg", "-c", "--experimental-rerun"),
)
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The command line with Hydra's flags before the overrides.

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


def fail_cleanly(action: Callable[[], object], shows_traceback: bool | None = None) -> None:
    """Run ``action``; an error whose message is written for the user ends with that message and code 1.

    Anything else is a defect and keeps its traceback; $HYDRA_FULL_ERROR, the default, keeps all of them.
    """
    if shows_traceback is None:
        shows_traceback = clean_exit.shows_traceback()
    exit_cleanly(action, _expected_errors, _describe, shows_traceback)


def _expected_errors() -> tuple[type[Exception], ...]:
    from worldmtp.analysis import ArtefactError
    from worldmtp.checkpoint import CheckpointError
    from worldmtp.studies.runner import StudyError

    checks = (ValueError, TypeError, OSError, MemoryError, FloatingPointError)
    return (*checks, CheckpointError, ArtefactError, StudyError, HydraException, OmegaConfBaseException)


def known_keys(arguments: Sequence[str]) -> list[str]:
    """Return the dotted keys of the schema, the groups, and the keys of a shipped study that is chosen."""
    tree = resources.files("worldmtp.configs")
    groups = [entry.name for entry in tree.iterdir() if entry.is_dir() and not entry.name.startswith("__")]
    keys = [*flat_keys(OmegaConf.structured(twin(TrainConfig))), *groups]
    chosen = {argument.rpartition("=")[2] for argument in arguments}
    for entry in (tree / "study").iterdir():
        if entry.name.endswith(".yaml") and entry.name.removesuffix(".yaml") in chosen:
            study = OmegaConf.create(entry.read_text(encoding="utf-8"))
            assert isinstance(study, DictConfig)  # a mapping, not a list
            keys += flat_keys(study, "study.")
    return keys


def _describe(error: Exception) -> str:
    if isinstance(error, HydraException):
        return explain(error, sys.argv[1:], known_keys(sys.argv[1:]))
    return message_of(error)
