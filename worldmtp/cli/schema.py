"""The shape that Hydra checks types and names against when it composes a training config.

OmegaConf cannot fill a frozen dataclass, so the schema is an unfrozen twin of each, made by ``twin`` from its fields.
``build`` goes back: plain values into the frozen dataclass, which checks them. No DictConfig leaves this package.
"""

import dataclasses
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar

import omegaconf
from omegaconf import DictConfig, OmegaConf

from worldmtp.training.config import config_from_dict

Config = TypeVar("Config")


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
            f"the config lacks {', '.join(missing)}; give a value on the command line, as {missing[0]}=..."
        )
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)  # of a mapping
    return config_from_dict(frozen, {str(key): value for key, value in values.items()})
