"""Errors of the command line: what was typed, and the nearest thing that exists."""

import difflib
import re
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf


def nearest_hint(message: str, overrides: Sequence[str], known_keys: Iterable[str]) -> str | None:
    """A sentence that names what was probably meant, for an error of Hydra's composition; None if nothing is near.

    Two kinds of typo: a key that the schema does not have (``agent.ppo.lerning_rate=...``), and an option that a group
    does not have (``env=chain_sm``), whose candidates Hydra lists in its message.
    """
    listed = re.search(r"Available options in '[^']*':\s*(.*)", message, flags=re.DOTALL)
    missing = re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']*)'", message)
    if listed and missing:
        options = [line.strip() for line in listed.group(1).split("\n\n")[0].splitlines() if line.strip()]
        near = difflib.get_close_matches(missing.group(1).rpartition("/")[2], options, n=1)
        return f"Did you mean {near[0]!r}?" if near else None
    keys = sorted(known_keys)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key and key not in keys and key in message:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            if near:
                return f"Did you mean {near[0]!r}?"
    return None


def flat_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a config, groups included."""
    keys: list[str] = []
    for name in map(str, config):
        key = f"{prefix}{name}"
        keys.append(key)
        if not OmegaConf.is_missing(config, name) and isinstance(config[name], DictConfig):
            keys += flat_keys(config[name], f"{key}.")
    return keys
