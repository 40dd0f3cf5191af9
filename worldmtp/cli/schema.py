"""The config tree as Hydra composes it: a schema of types and names, and the directories of users.

OmegaConf cannot fill a frozen dataclass, so the schema is an unfrozen twin of each, made by ``twin`` from its fields.
``build`` goes back: plain values into the frozen dataclass, which checks them. No DictConfig leaves this package.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import omegaconf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from worldmtp.cli.options import generated_options, store_options
from worldmtp.training.config import TrainConfig, config_from_dict

Config = TypeVar("Config")

CONFIG_TREE = "pkg://worldmtp.configs"
CONFIG_PATH_VARIABLE = "WORLDMTP_CONFIG_PATH"


def twin(frozen: type) -> type:
    """Return an unfrozen dataclass with the fields, types and defaults of a frozen one, nested ones included."""
    columns: list[tuple[str, Any, Any]] = []
    for column in fields(frozen):
        if isinstance(column.type, type) and is_dataclass(column.type):
            nested = twin(column.type)
            columns.append((column.name, nested, field(default_factory=nested)))
        elif column.default_factory is not dataclasses.MISSING:
            columns.append((column.name, column.type, field(default_factory=column.default_factory)))
        else:
            default = omegaconf.MISSING if column.default is dataclasses.MISSING else column.default
            columns.append((column.name, column.type, field(default=default)))
    return make_dataclass(f"{frozen.__name__}Schema", columns)


def build(frozen: type[Config], node: DictConfig) -> Config:
    """Return the frozen dataclass of a composed config node.

    Raises:
        ValueError: a value is missing or out of range; the message names it.
    """
    missing = sorted(str(name) for name in OmegaConf.missing_keys(node))
    if missing:
        raise ValueError(
            f"the config lacks {', '.join(missing)}; give a value on the command line, as "
            f"{' '.join(f'{name}=...' for name in missing)}"
        )
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)  # of a mapping
    return config_from_dict(frozen, {str(key): value for key, value in values.items()})


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
    ConfigStore.instance().store(name="train_schema", node=twin(TrainConfig))
    store_options()
    # Hydra copies its sources at each look at a group, a hundred times for --help; this one hands out copies as it is.
    ConfigStore.__deepcopy__ = _itself  # type: ignore[attr-defined]  # it has none of its own
    OmegaConf.register_new_resolver("config_digest", _digest_of_task, replace=True)
    plugins = Plugins.instance()
    if UserConfigDirectories not in plugins.discover(SearchPathPlugin):
        plugins.register(UserConfigDirectories)


def _itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:
    return store


def _digest_of_task(*, _root_: DictConfig) -> str:
    """Return ``${config_digest:}``: eight hexadecimal digits of the config, whatever the order of its keys.

    Jobs of a sweep are named by it, so that a value is found again wherever it stands on the command line.
    """
    config = OmegaConf.masked_copy(_root_, [key for key in map(str, _root_) if key != "hydra"])
    return hashlib.sha256(OmegaConf.to_yaml(config, resolve=True, sort_keys=True).encode()).hexdigest()[:8]


def known_keys(arguments: Sequence[str]) -> list[str]:
    """Return the dotted keys of the schema, the groups, and the keys of a shipped study or environment chosen."""
    tree = resources.files("worldmtp.configs")
    groups = [entry.name for entry in tree.iterdir() if entry.is_dir() and not entry.name.startswith("__")]
    keys = [*flat_keys(OmegaConf.structured(twin(TrainConfig))), *groups]
    chosen = {argument.rpartition("=")[2] for argument in arguments}
    options: list[tuple[str, Any]] = [
        (group, entry.read_text(encoding="utf-8"))
        for group in ("study", "env")
        for entry in (tree / group).iterdir()
        if entry.name.endswith(".yaml") and entry.name.removesuffix(".yaml") in chosen
    ]
    options += [(one.group, one.node) for one in generated_options() if one.group == "env" and one.name in chosen]
    for group, content in options:
        option = OmegaConf.create(content)
        assert isinstance(option, DictConfig)  # a mapping, not a list
        keys += flat_keys(option.get(group, option), f"{group}.")  # a global one has its group inside
    return keys


def flat_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Return every dotted key of a config, those of its groups included."""
    keys: list[str] = []
    for name in map(str, config):
        key = f"{prefix}{name}"
        keys.append(key)
        if not OmegaConf.is_missing(config, name) and isinstance(config[name], DictConfig):
            keys += flat_keys(config[name], f"{key}.")
    return keys
