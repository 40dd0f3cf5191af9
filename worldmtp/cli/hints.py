"""Errors of Hydra's composition, made clear: what was typed, why it does not fit, and the nearest thing that exists."""

import re
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from worldmtp.choices import nearest

_MISSING_OPTION = re.compile(r"Could not find '([^']*)'")
_LISTED_OPTIONS = re.compile(r"Available options in '[^']*':\n((?:\t[^\n]*\n?)*)")
_KEY_IN_FILE = re.compile(r"full_key: (\S+)")


def explain(error: Exception, overrides: Sequence[str], known_keys: Iterable[str]) -> str:
    """The message of an error of composition, its cause where that is a wrong type, and what was probably meant."""
    lines = [str(error)]
    if isinstance(error.__cause__, ValidationError):
        lines.append(str(error.__cause__).splitlines()[0])
    hint = nearest_hint(str(error), overrides, known_keys)
    if hint is not None:
        lines.append(hint)
    return "\n".join(lines)


def nearest_hint(message: str, overrides: Sequence[str], known_keys: Iterable[str]) -> str | None:
    """A sentence that names what was probably meant; None if nothing is near.

    Three kinds of typo: an option that a group does not have (``env=chain_sm``), whose candidates Hydra lists in its
    message; a key that the schema does not have, on the command line (``agent.ppo.lerning_rate=...``) or in a file.
    """
    listed, missing = _LISTED_OPTIONS.search(message), _MISSING_OPTION.search(message)
    if listed and missing:
        options = [line.strip() for line in listed.group(1).splitlines()]
        return _nearest(missing.group(1).rpartition("/")[2], options)
    keys = sorted(known_keys)
    typed = [override.partition("=")[0].lstrip("+~") for override in overrides]
    for key in [*_KEY_IN_FILE.findall(message), *(key for key in typed if key and f"'{key}'" in message)]:
        if key not in keys and key.rpartition(".")[0] not in _OPEN_NODES:
            return _nearest(key, keys)
    return None


_OPEN_NODES = ("env.kwargs", "model.config")
"""Any key goes here, so none is a typo of another; Hydra's own message says how one is added."""


def _nearest(name: str, candidates: Sequence[str]) -> str | None:
    found = nearest(name, candidates, cutoff=0.5)
    return f"Did you mean {found!r}?" if found else None


def flat_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a config, those of its groups included."""
    keys: list[str] = []
    for name in map(str, config):
        key = f"{prefix}{name}"
        keys.append(key)
        if not OmegaConf.is_missing(config, name) and isinstance(config[name], DictConfig):
            keys += flat_keys(config[name], f"{key}.")
    return keys
