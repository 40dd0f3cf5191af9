"""Answers that reasoning-gym's scorers evaluate as Python, and what is done about it.

Nine of its datasets call ``eval`` or sympy's ``parse_expr``, which is ``eval``, on the text of a policy (read in
0.1.25). A text could so run any code in the training process, read the oracle out of the caller's frame
(``entry['metadata']['solutions'][0]``), or compute ``9**9**9**9`` for ever. Here

* a text that is no literal of bounded size does not reach those that call ``eval``;
* countdown, puzzle24 and integrals are decided by ``safe_arithmetic``, in exact rational numbers where there are no
  functions: sympy sees nothing that a policy wrote. The derivative of an integral is compared with the integrand at
  fixed points;
* products of polynomials are first compared exactly at fixed points. Only a right one reaches the library's scorer,
  which also looks at how it is written: ``(x+1)*(x+2)`` is no answer to "multiply (x+1)*(x+2)".

complex_arithmetic and number_sorting read their answers safely, but take "NaN" and a list of NaN for right on every
question, since nothing is further from a number than it may be: what is no number is refused.
Three more run no code, but hang on a short text: coin_flip computes ``1e999999999`` as a fraction, rubiks_cube and
rush_hour make ``R999999999`` and ``A+999999999`` move by move. Numbers of that size are refused (reason "too_large").
coin_flip also pays "0" in full for any probability that begins with it, so it is decided here.
``benchmarks/scan_scorers.py`` looks for more.
"""

import ast
import cmath
import math
import re
import string
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from worldmtp.envs.tasks.safe_arithmetic import (
    Expression,
    Grammar,
    Number,
    apply,
    call,
    evaluate,
    is_function,
    parse,
)

LITERAL = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Datasets whose scorers call ``eval``."""
EXPRESSION = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Datasets whose scorers call ``parse_expr``."""

_MAX_LITERAL = 4000
_MAX_PRODUCT = 400
_MAX_LENGTH = 1000
_TOO_LARGE = {
    "coin_flip": re.compile(r"[eE][-+]?[\d_]{4}"),  # computed as a power of ten
    "rubiks_cube": re.compile(r"\d\d"),  # repeats of one move
    "rush_hour": re.compile(r"\d\d"),
}
"""Datasets whose scorers do as much work as a number says, and the numbers that no right answer has."""
_NUMBERS = Grammar(decimals=False, max_length=400)
_INTEGRAL_FUNCTIONS = frozenset("sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt".split())  # noqa: SIM905
_COMPLEX = re.compile(r"[-+0-9.eEiIjJ() ]*")
_POINTS = (Fraction(7, 11), Fraction(13, 9), Fraction(-5, 7), Fraction(17, 6), Fraction(-23, 10), Fraction(3, 19))
"""Where polynomials and derivatives are compared. A wrong one agrees at all of them by no accident."""
_LETTERS = frozenset(string.ascii_letters) - frozenset("EINOQS")  # those that sympy reads as something else
_TOLERANCE = 1e-10
_ZERO, _ONE = Fraction(0), Fraction(1)
_PROBABILITY_TOLERANCE = Fraction(1, 10_000)

Verdict = tuple[float, str] | None


def verdict(dataset: str, text: str, entry: dict[str, Any]) -> Verdict:
    """Score and reason of a text, or None if the dataset's own scorer may and shall decide.

    ``text`` is stripped, and not the oracle's answer itself, which any scorer may see.
    """
    if dataset in LITERAL:
        may_be_read = _is_literal(text, max_length=max(_MAX_LITERAL, 4 * len(entry["answer"])))
        return None if may_be_read or text in entry["metadata"].get("valid_answers", ()) else (0.0, "no_literal")
    if dataset in _TOO_LARGE and (len(text) > _MAX_LENGTH or _TOO_LARGE[dataset].search(text.replace(",", ""))):
        return 0.0, "too_large"
    if dataset == "coin_flip":
        return _probability(text, entry)
    if dataset == "complex_arithmetic":
        return None if _COMPLEX.fullmatch(text) and len(text) <= _MAX_PRODUCT else (0.0, "no_number")
    if dataset == "number_sorting":
        return (0.0, "no_number") if "nan" in text.casefold() else None
    if dataset not in EXPRESSION:
        return None
    try:
        return _DECIDE[dataset](text, entry)
    except (ValueError, ZeroDivisionError):
        return 0.0, "no_arithmetic"


def _is_literal(text: str, max_length: int) -> bool:
    if len(text) > max_length:
        return False
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _probability(text: str, entry: dict[str, Any]) -> Verdict:
    """Right within the library's tolerance. Its credit for shared first digits goes by the shorter of the two texts."""
    try:
        written = Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return 0.0, "no_number"
    is_right = abs(written - Fraction(entry["answer"])) <= _PROBABILITY_TOLERANCE
    return (1.0, "ok") if is_right else (0.0, "wrong_value")


def _countdown(text: str, entry: dict[str, Any]) -> Verdict:
    """Right with exactly these numbers and the target, which of puzzle24 is 24.

    The library's scorer of puzzle24 looks at the value alone, cut to a whole number: 1*2*3*4 would answer every
    question.
    """
    expression = parse(text, _NUMBERS)
    if sorted(expression.numbers) != sorted(entry["metadata"]["numbers"]):
        return 0.0, "wrong_numbers"
    return (1.0, "ok") if evaluate(expression) == entry["metadata"].get("target", 24) else (0.0, "wrong_value")


def _product(text: str, entry: dict[str, Any]) -> Verdict:
    max_length = max(_MAX_PRODUCT, 2 * len(entry["answer"]))
    grammar = Grammar(names=frozenset(entry["metadata"]["variables"]), max_length=max_length)
    written, right = parse(text, grammar), parse(entry["answer"], grammar)
    for shift in range(len(_POINTS)):
        values = {name: _POINTS[(i + shift) % len(_POINTS)] for i, name in enumerate(sorted(grammar.names))}
        if evaluate(written, values) != evaluate(right, values):
            return 0.0, "wrong_value"
    return None


def _integral(text: str, entry: dict[str, Any]) -> Verdict:
    variable = entry["metadata"]["variable"]
    names = _LETTERS | {variable, "pi", "E"}  # any letter may be the constant of integration
    grammar = Grammar(names=names, functions=_INTEGRAL_FUNCTIONS, max_length=400)
    written, integrand = parse(text, grammar), parse(entry["metadata"]["integrand"], grammar)
    constants: dict[str, Number] = {letter: Fraction(29 + ord(letter), 31) for letter in _LETTERS}
    constants |= {"pi": math.pi, "E": math.e}
    num_compared = 0
    for point in _POINTS:
        values = {**constants, variable: point}
        try:
            expected = evaluate(integrand, values)
        except (ValueError, ZeroDivisionError):
            continue  # the question has no value there
        _, slope = derivative(written, variable, values)
        if not _equal(slope, expected):
            return 0.0, "wrong_value"
        num_compared += 1
    if num_compared < 2:
        raise ValueError(f"the integrand {entry['metadata']['integrand']!r} has a value at {num_compared} points only.")
    return 1.0, "ok"


def _equal(left: Number, right: Number) -> bool:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    first, second = complex(left), complex(right)
    return cmath.isclose(first, second, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


_DECIDE: dict[str, Callable[[str, dict[str, Any]], Verdict]] = {
    "countdown": _countdown,
    "puzzle24": _countdown,
    "polynomial_multiplication": _product,
    "intermediate_integration": _integral,
    "simple_integration": _integral,
}


def derivative(expression: Expression, variable: str, values: Mapping[str, Number]) -> tuple[Number, Number]:
    """Return value and derivative by ``variable``, where all names have these values, by dual numbers.

    Each step of an expression carries its value and its derivative (forward accumulation, Wengert 1964). Numbers stay
    exact as long as there are neither functions nor roots, so polynomials are compared without rounding.

    Raises:
        TooLarge: if a number would exceed the bounds of ``safe_arithmetic.evaluate``.
        ZeroDivisionError: if it divides by zero.
        ValueError: if a function has no value or no derivative there.
    """
    stack: list[tuple[Number, Number]] = []
    for step in expression.steps:
        if isinstance(step, Fraction):
            stack.append((step, _ZERO))
        elif step == "positive":
            continue
        elif step == "negative":
            value, slope = stack.pop()
            stack.append((-value, -slope))
        elif step in ("+", "-", "*", "/", "**"):
            right, left = stack.pop(), stack.pop()
            stack.append(_operation(step, left, right))
        elif is_function(step) and step not in values:
            value, slope = stack.pop()
            inner = call(step, value)
            stack.append((inner, _times(_DERIVATIVES[step](value), slope) if slope else _ZERO))
        else:
            stack.append((values[step], _ONE if step == variable else _ZERO))
    return stack[0]


def _operation(operator: str, left: tuple[Number, Number], right: tuple[Number, Number]) -> tuple[Number, Number]:
    (a, da), (b, db) = left, right
    value = apply(operator, a, b, has_roots=True)
    if operator in ("+", "-"):
        return value, apply(operator, da, db)
    if operator == "*":
        return value, apply("+", _times(da, b), _times(a, db))
    if operator == "/":
        return value, apply("/", apply("-", _times(da, b), _times(a, db)), _times(b, b))
    slope: Number = _ZERO
    if da and b:  # b a^(b-1) a'
        slope = _times(_times(b, apply("**", a, apply("-", b, _ONE), has_roots=True)), da)
    if db:  # a^b log(a) b'
        slope = apply("+", slope, _times(_times(value, call("log", a)), db))
    return value, slope


def _times(left: Number, right: Number) -> Number:
    return apply("*", left, right) if left and right else _ZERO


def _power(value: Number, exponent: int | Fraction) -> Number:
    return apply("**", value, Fraction(exponent), has_roots=True)


def _inverse_root(sign: int) -> Callable[[Number], Number]:
    """Sign / sqrt(1 - x^2)."""
    return lambda x: apply("*", Fraction(sign), _power(apply("-", _ONE, _power(x, 2)), Fraction(-1, 2)))


_DERIVATIVES: dict[str, Callable[[Number], Number]] = {
    "sin": lambda x: call("cos", x),
    "cos": lambda x: -call("sin", x),
    "tan": lambda x: _power(call("sec", x), 2),
    "sec": lambda x: _times(call("sec", x), call("tan", x)),
    "csc": lambda x: -_times(call("csc", x), call("cot", x)),
    "cot": lambda x: -_power(call("csc", x), 2),
    "asin": _inverse_root(1),
    "acos": _inverse_root(-1),
    "atan": lambda x: apply("/", _ONE, apply("+", _ONE, _power(x, 2))),
    "sinh": lambda x: call("cosh", x),
    "cosh": lambda x: call("sinh", x),
    "tanh": lambda x: apply("-", _ONE, _power(call("tanh", x), 2)),
    "exp": lambda x: call("exp", x),
    "log": lambda x: apply("/", _ONE, x),
    "ln": lambda x: apply("/", _ONE, x),
    "sqrt": lambda x: apply("/", Fraction(1, 2), call("sqrt", x)),
    "Abs": lambda x: apply("/", x, call("Abs", x)),
}
