"""Arithmetic that a policy writes, read with ``ast`` and evaluated here: nothing is run, and every cost is bounded.

Countdown decides with it what a text is worth, and ``worldmtp.envs.tasks.evaluated_answers`` what may reach those
scorers of reasoning-gym that call ``eval``.

* A text is split into tokens first: ASCII numbers, names, operators and brackets. A text with any other character is
  refused before Python's parser sees it.
* The length of the text, the depth of its brackets, signs, powers and calls, and the number of its parts are bounded.
* Rational numbers are exact. The size of a result is bounded before it is computed, from the sizes of its operands; an
  exponent is bounded after it was evaluated.
* Functions and roots give floats or complex numbers, of bounded arguments. Floats cost the same whatever their size.

Left out: floor division, remainders, bits, comparisons, factorials, keyword arguments, more than one argument.
"""

import ast
import cmath
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Any

Number = Fraction | float | complex

MAX_BITS = 4096
"""Most bits of a numerator and its denominator together."""
MAX_EXPONENT = 128
MAX_DEPTH = 40
_MAX_ARGUMENT = 1e4
_MAX_DECIMAL_EXPONENT = 300

_TOKEN = re.compile(
    r"[ \t\n\r\f\v]*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?![0-9A-Za-z_.])"
    r"|(?P<name>[A-Za-z]+)(?![0-9_])|(?P<operator>\*\*|[-+*/()]))"
)
_INTEGER = re.compile(r"0|[1-9][0-9]*")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"+": add, "-": sub, "*": mul, "/": truediv}
_SIGNS = {ast.UAdd: "positive", ast.USub: "negative"}

_REAL_AND_COMPLEX: dict[str, tuple[Callable[[float], float], Callable[[complex], complex]]] = {
    "sin": (math.sin, cmath.sin),
    "cos": (math.cos, cmath.cos),
    "tan": (math.tan, cmath.tan),
    "sec": (lambda x: 1 / math.cos(x), lambda z: 1 / cmath.cos(z)),
    "csc": (lambda x: 1 / math.sin(x), lambda z: 1 / cmath.sin(z)),
    "cot": (lambda x: 1 / math.tan(x), lambda z: 1 / cmath.tan(z)),
    "asin": (math.asin, cmath.asin),
    "acos": (math.acos, cmath.acos),
    "atan": (math.atan, cmath.atan),
    "sinh": (math.sinh, cmath.sinh),
    "cosh": (math.cosh, cmath.cosh),
    "tanh": (math.tanh, cmath.tanh),
    "exp": (math.exp, cmath.exp),
    "log": (math.log, cmath.log),
    "ln": (math.log, cmath.log),
    "sqrt": (math.sqrt, cmath.sqrt),
    "Abs": (abs, abs),
}


class TooLarge(ValueError):
    """An operation would exceed a bound, so it was not computed."""


@dataclass(frozen=True)
class Grammar:
    """What a text may consist of, beside whole numbers, ``+ - * /`` and brackets.

    Args:
        names: variables and constants; whoever evaluates gives their values.
        functions: names that ``is_function`` knows and that may be called; with them come exponents that are no whole
            numbers.
        signs: before numbers and brackets.
        powers: ``**``.
        decimals: numbers with a point or a decimal exponent.
        max_length: most characters of a text.
        max_digits: most digits of a number in the text.
    """

    names: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    signs: bool = True
    powers: bool = True
    decimals: bool = True
    max_length: int = 1000
    max_digits: int = 300


@dataclass(frozen=True)
class Expression:
    """An expression in postfix order: a number, or the symbol of an operation, a name or a function."""

    steps: tuple[Fraction | str, ...]
    operators: frozenset[str]
    has_roots: bool = False

    @property
    def numbers(self) -> list[Fraction]:
        """The numbers in the text, from left to right."""
        return [step for step in self.steps if isinstance(step, Fraction)]


def parse(text: str, grammar: Grammar) -> Expression:
    """Return the expression that a text writes.

    Raises:
        ValueError: if the text is no expression of the grammar, or exceeds a bound (then it is a ``TooLarge``).
    """
    _check_tokens(text, grammar)
    source = re.sub(r"\s", " ", text).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about code such as 1(2), which is refused below
            tree = ast.parse(source, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{_shown(text)} is no expression.") from error
    steps: list[Fraction | str] = []
    operators: set[str] = set()
    waiting: list[tuple[ast.expr, int]] = [(tree, 0)]
    while waiting:  # the reverse of postfix order, so that no text is too deep for Python's stack
        node, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise TooLarge(f"{_shown(text)} nests deeper than {MAX_DEPTH}.")
        match node:
            case ast.Constant():
                steps.append(_number(source[node.col_offset : node.end_col_offset], grammar))
            case ast.Name(id=name) if name in grammar.names:
                steps.append(name)
            case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
                steps.append(_SIGNS[type(sign)])
                waiting.append((operand, depth + 1))
            case ast.BinOp(op=operator, left=left, right=right) if type(operator) in _OPERATORS:
                symbol = _OPERATORS[type(operator)]
                operators.add(symbol)
                steps.append(symbol)  # a sum of many terms leans to the left: no nesting
                waiting += [(left, depth + (symbol == "**")), (right, depth + 1)]
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in grammar.functions:
                steps.append(name)
                waiting.append((argument, depth + 1))
            case _:
                raise ValueError(f"{_shown(text)} is no expression of the allowed numbers, names and operators.")
    return Expression(tuple(reversed(steps)), frozenset(operators), has_roots=bool(grammar.functions))


def evaluate(expression: Expression, values: Mapping[str, Number] | None = None) -> Number:
    """Return the value of an expression, with ``values`` for its names: exact without functions and roots.

    Raises:
        TooLarge: if a number would exceed ``MAX_BITS``, an exponent ``MAX_EXPONENT``, or a float its range.
        ZeroDivisionError: if it divides by zero.
        ValueError: if a function has no value there.
    """
    values = values or {}
    stack: list[Number] = []
    for step in expression.steps:
        if isinstance(step, Fraction):
            value: Number = step
        elif step in _REAL_AND_COMPLEX and step not in values:
            value = call(step, stack.pop())
        elif step == "negative":
            value = -stack.pop()
        elif step == "positive":
            continue
        elif step in ("+", "-", "*", "/", "**"):
            right, left = stack.pop(), stack.pop()
            value = apply(step, left, right, has_roots=expression.has_roots)
        else:
            value = values[step]
        stack.append(value)
    return stack[0]


def apply(operator: str, left: Number, right: Number, has_roots: bool = False) -> Number:
    """Return the value of one operation, if its result is in bounds.

    Raises:
        TooLarge: if the result might exceed ``MAX_BITS``, the exponent ``MAX_EXPONENT``, or a float its range.
        ZeroDivisionError: if it divides by zero.
        ValueError: if the exponent is no whole number, and no roots are asked for.
    """
    if operator == "**":
        return _power(left, right, has_roots)
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        if _num_bits(left) + _num_bits(right) > MAX_BITS:
            raise TooLarge(f"a result of {operator!r} may have more than {MAX_BITS} bits.")
        exact: Fraction = _ARITHMETIC[operator](left, right)
        return exact
    try:
        return _finite(_ARITHMETIC[operator](_as_float(left), _as_float(right)))
    except OverflowError as error:
        raise TooLarge(f"a result of {operator!r} exceeds the range of floats.") from error


def evaluate_exact(expression: Expression) -> Fraction:
    """Return the value of an expression that has numbers, ``+ - * /`` and brackets alone; raises as ``evaluate``."""
    value = evaluate(expression)
    assert isinstance(value, Fraction)  # nothing else makes floats than functions, roots and names
    return value


def apply_exact(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """Return ``apply`` of two rational numbers; raises as it does."""
    value = apply(operator, left, right)
    assert isinstance(value, Fraction)
    return value


def _power(base: Number, exponent: Number, has_roots: bool) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        power = exponent.numerator
        if abs(power) > MAX_EXPONENT:
            raise TooLarge(f"an exponent exceeds {MAX_EXPONENT}.")
        if isinstance(base, Fraction):
            if _num_bits(base) * abs(power) > MAX_BITS:
                raise TooLarge(f"a power may have more than {MAX_BITS} bits.")
            return base**power
        exponent = float(power)
    elif not has_roots:
        raise ValueError("an exponent is no whole number.")
    elif abs(_as_float(exponent)) > MAX_EXPONENT:
        raise TooLarge(f"an exponent exceeds {MAX_EXPONENT}.")
    try:
        return _finite(_as_float(base) ** _as_float(exponent))
    except OverflowError as error:
        raise TooLarge("a power exceeds the range of floats.") from error


def is_function(name: str) -> bool:
    """Return whether ``call`` knows the function."""
    return name in _REAL_AND_COMPLEX


def call(name: str, argument: Number) -> Number:
    """Return the value of a function, by sympy's name; see ``is_function``.

    Raises:
        TooLarge: if the argument exceeds 10,000, or the value the range of floats.
        ZeroDivisionError: if it divides by zero there.
        ValueError: if it has no value there.
    """
    real, of_complex = _REAL_AND_COMPLEX[name]
    value = _as_float(argument)
    if abs(value) > _MAX_ARGUMENT:
        raise TooLarge(f"{name} of a number beyond {_MAX_ARGUMENT:g}.")
    try:
        if isinstance(value, float):
            try:
                return _finite(real(value))
            except ValueError:  # such as the root of a negative number
                return _finite(of_complex(value))
        return _finite(of_complex(value))
    except OverflowError as error:
        raise TooLarge(f"{name} exceeds the range of floats.") from error


def _check_tokens(text: str, grammar: Grammar) -> None:
    """Raise if a text has anything but tokens of the grammar, is too long, or has too many open brackets."""
    if len(text) > grammar.max_length:
        raise TooLarge(f"a text of {len(text)} characters exceeds {grammar.max_length}.")
    text = text.rstrip(" \t\n\r\f\v")
    place = depth = 0
    before = "("
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"{_shown(text)} is no expression from character {place} on.")
        place = match.end()
        token = match[match.lastgroup or 0]
        if match["number"] and not grammar.decimals and not _INTEGER.fullmatch(token):
            raise ValueError(
                f"{_shown(text)} has the number {_shown(token)}, which is no whole number as people write."
            )
        if match["name"] and token not in grammar.names and token not in grammar.functions:
            raise ValueError(f"{_shown(text)} has the name {_shown(token)}, which stands for nothing here.")
        if token == "**" and not grammar.powers:
            raise ValueError(f"{_shown(text)} has the operator '**', which is not allowed here.")
        if token in ("+", "-") and not grammar.signs and not (before[-1].isalnum() or before == ")"):
            raise ValueError(f"{_shown(text)} has a sign at character {place - 1}, where a number was expected.")
        depth += (token == "(") - (token == ")")
        if depth > MAX_DEPTH:
            raise TooLarge(f"{_shown(text)} opens more than {MAX_DEPTH} brackets.")
        before = token


def _number(token: str, grammar: Grammar) -> Fraction:
    mantissa, _, exponent = token.lower().partition("e")
    size = exponent.lstrip("+-0")[:9]  # 1e000000000999999999 is as large as 1e999999999
    if len(mantissa) > grammar.max_digits or (size and int(size) > _MAX_DECIMAL_EXPONENT):
        raise TooLarge(f"the number {_shown(token)} has more than {grammar.max_digits} digits.")
    return Fraction(token)


def _num_bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _as_float(value: Number) -> float | complex:
    if not isinstance(value, Fraction):
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise TooLarge("a number exceeds the range of floats.") from error


def _finite(value: float | complex) -> float | complex:
    if not cmath.isfinite(value):
        raise TooLarge("a value is infinite or not a number.")
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
