"""Options of a reasoning-gym dataset from its curriculum: a level for all of its attributes, or one for each."""

from collections.abc import Mapping
from typing import Any

from worldmtp.choices import did_you_mean

Level = int | Mapping[str, int]


def curriculum_options(library: Any, dataset: str, level: Level) -> dict[str, Any]:
    """The dataset's options at a level.

    Args:
        library: ``reasoning_gym.factory``.
        dataset: name of the dataset.
        level: of all attributes, from 0; one that has fewer levels stays at its highest. Or levels by the attributes'
            names; the others stay at their default level.

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
    """Options that an attribute sets: one for a scalar, two for a range."""
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
