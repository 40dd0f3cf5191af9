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
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from worldmtp.envs.tasks.derivative import derivative
from worldmtp.envs.tasks.safe_arithmetic import Grammar, Number, evaluate, parse

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
    expression = parse(text, _NUMBERS)
    if sorted(expression.numbers) != sorted(entry["metadata"]["numbers"]):
        return 0.0, "wrong_numbers"
    return (1.0, "ok") if evaluate(expression) == entry["metadata"]["target"] else (0.0, "wrong_value")


def _puzzle24(text: str, entry: dict[str, Any]) -> Verdict:
    """The library's scorer looks at the value alone, cut to a whole number: 1*2*3*4 would answer every question."""
    expression = parse(text, _NUMBERS)
    if Counter(expression.numbers) != Counter(entry["metadata"]["numbers"]):
        return 0.0, "wrong_numbers"
    return (1.0, "ok") if evaluate(expression) == 24 else (0.0, "wrong_value")


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
    "puzzle24": _puzzle24,
    "polynomial_multiplication": _product,
    "intermediate_integration": _integral,
    "simple_integration": _integral,
}
