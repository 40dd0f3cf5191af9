"""Studies by name, made from plain values. A study's module is imported when one of it is made.

A study that is not listed is named by its entry point, ``my_module:MyStudy``. Values are held to the fields of the
study's ``config_class``: names, and the types of scalars and of lists of them; ranges are that class's own business.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from worldmtp.choices import check_choice
from worldmtp.lazy import import_name
from worldmtp.studies.protocol import Study

STUDIES: dict[str, str] = {
    "densification": "worldmtp.studies.densification:Densification",
    "head_families": "worldmtp.studies.head_families:HeadFamilies",
    "path_star": "worldmtp.studies.path_star:PathStarStudy",
}
"""Entry points by name."""


def study_class(name: str) -> Any:
    """The class of a study, by its name here or by an entry point.

    Raises:
        ValueError: no such name (the nearest is suggested), or an entry point that leads nowhere.
        TypeError: the class has no ``config_class``.
    """
    if ":" not in name:
        check_choice("study", name, STUDIES)
    found = import_name(STUDIES.get(name, name), f"study={name!r}")
    if not is_dataclass(getattr(found, "config_class", None)):
        raise TypeError(f"study={name!r} is {found!r}, without a config_class; that is a frozen dataclass.")
    return found


def make_study(name: str, values: Mapping[str, Any]) -> Study:
    """The study of that name with its config made of ``values``; what is left out has its default.

    Raises:
        ValueError: an unknown study or field (the nearest is suggested), one that is missing, or a value out of range.
        TypeError: a value is of the wrong type.
    """
    family = study_class(name)
    columns = {column.name: column for column in fields(family.config_class)}
    for key in values:
        check_choice(f"a key of study {name}", str(key), columns)
    missing = [
        key
        for key, column in columns.items()
        if key not in values and column.default is MISSING and column.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"study {name} lacks {', '.join(missing)}; give a value, as study.{missing[0]}=...")
    converted = {key: _converted(columns[key].type, value, f"study.{key}") for key, value in values.items()}
    try:
        config = family.config_class(**converted)
    except ValueError as error:
        raise ValueError(f"study {name}: {error}") from error
    study = family(config)
    assert isinstance(study, Study)
    return study


def _converted(kind: Any, value: Any, place: str) -> Any:
    """The value as its field wants it: integers become floats there, and lists tuples."""
    if get_origin(kind) in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{place}={value!r} must be a list, as [{value!r}].")
        inner = get_args(kind)[0]
        return get_origin(kind)(_converted(inner, item, f"{place}[{index}]") for index, item in enumerate(value))
    allowed = get_args(kind) or (kind,)  # X | None has arguments, a plain type has none
    if get_origin(kind) is dict or not set(allowed) <= {bool, int, float, str, NoneType}:
        return value
    if value is None and NoneType in allowed:
        return None
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) == (bool in allowed) and isinstance(value, allowed):
        return value
    names = " or ".join("null" if item is NoneType else item.__name__ for item in allowed)
    raise TypeError(f"{place}={value!r} is a {type(value).__name__}; it must be {names}.")
