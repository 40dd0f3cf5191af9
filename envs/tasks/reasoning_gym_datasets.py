"""Datasets of reasoning-gym: made by their options or by a level of their curriculum, and slow items kept on disk."""

import ast
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldmtp.choices import did_you_mean
from worldmtp.envs.global_rng import seeded_global_rng

Level = int | Mapping[str, int]
"""Of all attributes of a curriculum, or of each by its name."""
INDEX_RANGE = 2**31
BOUNDED_SIZE = 1000
"""Items of the few datasets that prepare their items in advance."""
CACHE_VARIABLE = "WORLDMTP_CACHE_DIR"
SLOW_SECONDS = 0.005


def dataset_names() -> list[str]:
    """Return the names of all datasets of the installed reasoning-gym."""
    return sorted(_library().DATASETS)


def _library() -> Any:
    """Return reasoning-gym's factory; its import draws from Python's global generator."""
    with seeded_global_rng(0):
        from reasoning_gym import factory
    return factory


def create_dataset(name: str, config: dict[str, Any], level: Level | None) -> Any:
    """Return a dataset with these options, or with those of a level of its curriculum and these.

    Raises:
        ValueError: the dataset, an option or the level is unknown, or both decide an option.
    """
    library = _library()
    if name not in library.DATASETS:
        raise ValueError(f"reasoning-gym has no dataset {name!r}{did_you_mean(name, library.DATASETS)}")
    reserved = sorted({"seed", "size"} & set(config))
    if reserved:
        raise ValueError(f"{reserved} of {name} belong to the environment; seed with reset(seed=...) and pool_seed.")
    fields = set(library.DATASETS[name][1].__dataclass_fields__) - {"seed", "size"}
    unknown = sorted(set(config) - fields)
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r}{did_you_mean(unknown[0], fields)} Its options: {sorted(fields)}."
        )
    if level is None:
        return library.create_dataset(name, seed=0, size=BOUNDED_SIZE, **config)
    options = curriculum_options(library, name, level)
    twice = sorted(set(options) & set(config))
    if twice:
        raise ValueError(f"level={level!r} of {name} decides {twice} too; leave one of them out.")
    try:
        return library.create_dataset(name, seed=0, size=BOUNDED_SIZE, **options, **config)
    except AssertionError as error:  # some curricula have levels that their own dataset refuses
        raise ValueError(f"level={level!r} of {name} means {options}, which it refuses: {error}.") from error


def is_bounded(dataset: Any) -> bool:
    """Return whether the dataset prepared its items, so that only ``size`` of them exist; others make any index."""
    try:
        dataset[INDEX_RANGE - 1]
    except IndexError:
        return True
    return False


def curriculum_options(library: Any, dataset: str, level: Level) -> dict[str, Any]:
    """Return the dataset's options at a level; ``library`` is ``reasoning_gym.factory``.

    The level is that of all attributes, from 0; one that has fewer levels stays at its highest. Or it is levels by the
    attributes' names; the others stay at their default level.

    Raises:
        ValueError: if the dataset has no curriculum, an attribute is unknown, or a level is out of range.
    """
    if dataset not in library.CURRICULA:
        raise ValueError(f"{dataset} has no curriculum, so level={level!r} says nothing; set its options instead.")
    curriculum = library.create_curriculum(dataset)
    num_levels = {name: len(attribute.levels) for name, attribute in curriculum.attributes.items()}
    if isinstance(level, Mapping):
        for name, value in level.items():
            if name not in num_levels:
                raise ValueError(
                    f"the curriculum of {dataset} has no attribute {name!r}{did_you_mean(name, num_levels)} "
                    f"Its attributes and their numbers of levels: {num_levels}."
                )
            _check_level(f"level[{name!r}]", value, num_levels[name], dataset, num_levels)
            curriculum.set_attr_level(name, value)
    else:
        _check_level("level", level, max(num_levels.values()), dataset, num_levels)
        curriculum.set_global_level(level)
    config = curriculum.generate_configuration()
    return {field: getattr(config, field) for field in _decided_fields(curriculum)}


def _decided_fields(curriculum: Any) -> list[str]:
    """Return the options that attributes set: one for a scalar, two for a range."""
    fields = []
    for attribute in curriculum.attributes.values():
        for role in ("field_name", "lower_field_name", "upper_field_name"):
            if hasattr(attribute, role):
                fields.append(getattr(attribute, role))
    return fields


def _check_level(argument: str, level: Any, num_levels: int, dataset: str, all_levels: dict[str, int]) -> None:
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < num_levels:
        raise ValueError(
            f"{argument}={level!r} of {dataset} must lie in 0..{num_levels - 1}; "
            f"its attributes and their numbers of levels: {all_levels}."
        )


class ItemCache:
    """Items by index: the second process reads what the first one made.

    Off unless a directory is named, by the argument or by ``WORLDMTP_CACHE_DIR``, since a program should not fill a
    disk unasked. An item is kept under what determines it (the caller's ``identity``, its index), so that it never
    depends on whether it was kept. It is written as a Python literal and read by ``ast.literal_eval``, which runs
    nothing; an item that does not come back the same, character by character and type by type, is not kept. One file an
    identity, one line an item with a checksum: processes append side by side, and a line that was cut short is made
    anew.

    Args:
        directory: where files are kept; None asks ``WORLDMTP_CACHE_DIR``, and keeps nothing where that is unset.
        name: beginning of the file's name.
        identity: what determines the items, all of it, such as versions and options.
        slow_seconds: items that took less are not kept, since reading takes as long; None is ``SLOW_SECONDS``.
    """

    def __init__(
        self, directory: str | Path | None, name: str, identity: str, slow_seconds: float | None = None
    ) -> None:
        directory = directory or os.environ.get(CACHE_VARIABLE)
        digest = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
        self.path = Path(directory).expanduser() / f"{name}-{digest}.items" if directory else None
        self.num_made = 0
        self._slow_seconds = SLOW_SECONDS if slow_seconds is None else slow_seconds
        self._kept: dict[int, str] | None = None

    def get(self, index: int, make: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """Return the item, read or made; each call returns another object."""
        if self.path is None:
            return make(index)
        if self._kept is None:
            self._kept = _read(self.path)
        if index in self._kept:
            kept: dict[str, Any] = ast.literal_eval(self._kept[index])
            return kept
        start = time.perf_counter()
        item = make(index)
        self.num_made += 1
        if time.perf_counter() - start >= self._slow_seconds:
            literal = repr(item)
            if _is_exact(literal):
                self._kept[index] = literal
                _append(self.path, index, literal)
        return item


def _is_exact(literal: str) -> bool:
    """Return whether the literal, read back, is written the same; objects and numpy's numbers are no literals."""
    try:
        return repr(ast.literal_eval(literal)) == literal
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _append(path: Path, index: int, literal: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = f"{index} {literal}"
    line = f"{_checksum(body)} {body}\n".encode()
    # one write to a file opened for appending: lines of several processes do not mix
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[int, str]:
    if not path.exists():
        return {}
    kept = {}
    for line in path.read_bytes().split(b"\n"):
        checksum, _, body = line.decode(errors="replace").partition(" ")
        if body and checksum == _checksum(body):
            index, _, literal = body.partition(" ")
            kept[int(index)] = literal
    return kept


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=6).hexdigest()
