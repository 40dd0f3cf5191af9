"""Derivatives of parsed expressions at a point, by dual numbers: what an integral that a policy writes is checked with.

Each step of an expression carries its value and its derivative (forward accumulation, Wengert 1964). Numbers stay exact
as long as there are neither functions nor roots, so polynomials are compared without rounding.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction

from worldmtp.envs.tasks.safe_arithmetic import Expression, Number, apply, call, is_function

_ZERO, _ONE = Fraction(0), Fraction(1)


def derivative(expression: Expression, variable: str, values: Mapping[str, Number]) -> tuple[Number, Number]:
    """Value and derivative by ``variable``, where all names have these values.

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
