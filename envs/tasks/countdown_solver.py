"""All solutions of a Countdown puzzle: every expression over every part of its numbers.

Expressions that differ only by the order of terms or factors, or by brackets that change nothing, are one solution:
sums and products are kept flat and sorted, and ``a - (b - c)`` is ``a + c - b``. Not made equal: ``(a - b) * (c - d)``
and ``(b - a) * (d - c)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from worldmtp.envs.tasks.safe_arithmetic import apply_exact

OPERATORS = "+-*/"
_NEGATING = {"+": 1, "*": 1, "-": -1, "/": -1}


@dataclass(frozen=True)
class Expression:
    """A number (no parts), a sum of signed terms, or a product of factors (1) and divisors (-1)."""

    text: str
    value: Fraction
    kind: str = "number"
    parts: tuple[tuple[int, "Expression"], ...] = ()


def number_expression(number: int) -> Expression:
    """A number by itself."""
    return Expression(str(number), Fraction(number))


def combine(operator: str, left: Expression, right: Expression) -> Expression:
    """The two joined by an operator, in the one way that all equivalent ways of writing share.

    Raises:
        ZeroDivisionError: if it divides by zero.
    """
    value = apply_exact(operator, left.value, right.value)
    kind, plus, minus = ("sum", "+", "-") if operator in "+-" else ("product", "*", "/")
    turned = [(_NEGATING[operator] * sign, part) for sign, part in _parts(right, kind)]
    parts = tuple(sorted([*_parts(left, kind), *turned], key=lambda item: (-item[0], item[1].text)))
    text = "".join(
        (plus if sign > 0 else minus) + (f"({part.text})" if kind == "product" and part.kind == "sum" else part.text)
        for sign, part in parts
    )
    return Expression(text[1:], value, kind, parts)  # the first part is never a negative one


def solutions(numbers: Sequence[int], target: int, operators: str = "+-*") -> list[str]:
    """Every expression that uses each number exactly once and has exactly this value, sorted; empty if there is none.

    The search is exhaustive, and its work grows with the number of expressions: milliseconds for four numbers, minutes
    for six.

    Raises:
        ValueError: if there is no number, one is negative, or an operator is unknown.
    """
    return sorted(
        expression.text for expression in all_expressions(numbers, operators) if expression.value == Fraction(target)
    )


def all_expressions(numbers: Sequence[int], operators: str = "+-*") -> list[Expression]:
    """Every expression that uses each number exactly once.

    Raises:
        ValueError: if there is no number, one is negative, or an operator is unknown.
    """
    check_operators(operators)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"numbers={list(numbers)} must be one or more, none of them negative.")
    of_subset: dict[int, dict[str, Expression]] = {}  # a subset is the bits of its indices
    for subset in range(1, 2 ** len(numbers)):
        lowest = subset & -subset
        if subset == lowest:
            single = number_expression(numbers[lowest.bit_length() - 1])
            of_subset[subset] = {single.text: single}
            continue
        found: dict[str, Expression] = {}
        part = (subset - 1) & subset
        while part:  # every way to part the subset into an ordered pair
            for left in of_subset[part].values():
                for right in of_subset[subset ^ part].values():
                    for operator in operators:
                        if (operator in "+*" and not part & lowest) or (operator == "/" and right.value == 0):
                            continue  # an order seen already, or no value
                        joined = combine(operator, left, right)
                        found[joined.text] = joined
            part = (part - 1) & subset
        of_subset[subset] = found
    return list(of_subset[2 ** len(numbers) - 1].values())


def check_operators(operators: str) -> None:
    """Nothing.

    Raises:
        ValueError: if there is none, one is unknown or repeated, or there is "-" without "+" or "/" without "*".
    """
    if ("-" in operators and "+" not in operators) or ("/" in operators and "*" not in operators):
        raise ValueError(f"operators={operators!r}: '-' comes with '+' and '/' with '*', since a-(b-c) is a+c-b.")
    if not operators or not set(operators) <= set(OPERATORS) or len(set(operators)) < len(operators):
        raise ValueError(f"operators={operators!r} must be some of {OPERATORS!r}, each once.")


def _parts(expression: Expression, kind: str) -> tuple[tuple[int, Expression], ...]:
    return expression.parts if expression.kind == kind else ((1, expression),)
