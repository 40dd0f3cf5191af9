"""House rules that no linter has: sizes, names, paths. Each is shown to catch what it is for."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

# Someone's home or a build machine's folders: neither a URL's path nor a relative one.
PRIVATE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|root|Users|work|opt|mnt)/\w+")


def long_file(text: str) -> list[str]:
    count = len(text.splitlines())
    return [f"{count} lines: one concept a file"] if count > MAX_FILE_LINES else []


def long_function(text: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
    return [f"{name}: {length} lines" for name, length in lengths if length > MAX_FUNCTION_LINES]


def no_docstring(text: str) -> list[str]:
    return [] if ast.get_docstring(ast.parse(text)) else ["no module docstring"]


def private_path(text: str) -> list[str]:
    return [match.group() for match in PRIVATE_PATH.finditer(text)]


class Rule(NamedTuple):
    """A check with one text it must object to, once, and one it must let pass."""

    check: Callable[[str], list[str]]
    offence: str
    fine: str


SOURCE_RULES = {
    "file length": Rule(long_file, "x = 1\n" * 401, "x = 1\n" * 400),
    "function length": Rule(long_function, "def f():\n" + "    x = 1\n" * 80, "def f():\n" + "    x = 1\n" * 79),
    "module docstring": Rule(no_docstring, "x = 1\n", '"""What it is."""\n'),
}
TEXT_RULES = {
    "private path": Rule(private_path, "cd /" + "home/someone/project", "https://example.org/" + "home/page; a/work/b")
}


@pytest.mark.parametrize("name", SOURCE_RULES)
def test_sources_keep_the_rule(project_sources: dict[str, str], name: str) -> None:
    check = SOURCE_RULES[name].check
    assert [f"{path}: {found}" for path, text in project_sources.items() for found in check(text)] == []


@pytest.mark.parametrize("name", TEXT_RULES)
def test_texts_keep_the_rule(project_texts: dict[str, str], name: str) -> None:
    check = TEXT_RULES[name].check
    assert [f"{path}: {found}" for path, text in project_texts.items() for found in check(text)] == []


@pytest.mark.parametrize("name", SOURCE_RULES | TEXT_RULES)
def test_rule_tells_an_offence_from_none(name: str) -> None:
    rule = (SOURCE_RULES | TEXT_RULES)[name]
    assert len(rule.check(rule.offence)) == 1
    assert rule.check(rule.fine) == []


def test_no_file_is_named_utils(project_sources: dict[str, str]) -> None:
    assert [path for path in project_sources if "utils" in Path(path).stem] == [], "name a file after its concept"


def test_few_modules_stand_outside_of_a_room(project_sources: dict[str, str]) -> None:
    loose = [path for path in project_sources if path.count("/") == 1 and path.startswith("worldmtp/")]
    assert "worldmtp/returns.py" in loose
    assert len(loose) - 1 <= 8, f"{sorted(loose)}: __init__ and at most eight; put a module into its room."
