"""No test asserts what cannot be false, or loops over what is empty where it is written."""

import ast
from collections.abc import Iterator

import pytest


def vacuous(source: str) -> list[str]:
    """Return the assertions and loops of a test's source that hold whatever the product does."""
    return [ast.unparse(part) for part in _vacuous(ast.parse(source))]


def _vacuous(tree: ast.AST) -> Iterator[ast.AST]:
    for part in ast.walk(tree):
        if isinstance(part, ast.Assert) and any(map(_is_always_true, _ways(part.test))):
            yield part.test
        if isinstance(part, ast.For) and any(
            isinstance(way, ast.List | ast.Tuple) and not way.elts for way in _ways(part.iter)
        ):
            yield part.iter


def _ways(value: ast.expr) -> list[ast.expr]:
    """Return what an expression may come to: either branch of a choice, any operand of an ``or``."""
    if isinstance(value, ast.IfExp):
        return [*_ways(value.body), *_ways(value.orelse)]
    if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or):
        return [way for operand in value.values for way in _ways(operand)]
    return [value]


def _is_always_true(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return bool(value.value)
    if isinstance(value, ast.Tuple | ast.List | ast.Set):
        return bool(value.elts)
    return isinstance(value, ast.GeneratorExp | ast.Lambda)  # ``all`` was forgotten, or a call


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("assert left[sure].max() < 0.05 if sure.any() else True", ["left[sure].max() < 0.05 if sure.any() else True"]),
        ("assert ok or 1", ["ok or 1"]),
        ("assert (a, b)", ["(a, b)"]),
        ("assert 'text'", ["'text'"]),
        ("assert [a == b]", ["[a == b]"]),
        ("assert (x > 0 for x in xs)", ["(x > 0 for x in xs)"]),
        ("assert few or (lambda: a)", ["few or (lambda: a)"]),
        ("assert [x for x in xs]", []),
        ("for x in [] if few else xs:\n    assert x", ["[] if few else xs"]),
        ("assert a if few else b", []),
        ("assert a or b == (1, 2)", []),
        ("assert (few if a else True) == b", []),
        ("for x in [1]:\n    assert x", []),
    ],
)
def test_what_holds_by_itself_is_found(source: str, found: list[str]) -> None:
    assert vacuous(source) == found


def test_every_assertion_can_fail(project_sources: dict[str, str]) -> None:
    tests = {path: text for path, text in project_sources.items() if path.startswith("tests/")}
    assert len(tests) > 300
    assert {path: found for path, text in tests.items() if (found := vacuous(text))} == {}
