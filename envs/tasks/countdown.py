"""Countdown: reach the target with each of the numbers, exactly once. Every puzzle comes with a true solution.

The game of the television shows "Des chiffres et des lettres" and "Countdown", and a common benchmark of search by
language models (Gandhi et al. 2024, "Stream of Search", https://arxiv.org/abs/2404.03683). We differ in that every
number must be used; in the show some may be left.

Expressions that differ only by the order of terms or factors, or by brackets that change nothing, are one solution:
sums and products are kept flat and sorted, and ``a - (b - c)`` is ``a + c - b``. Not made equal: ``(a - b) * (c - d)``
and ``(b - a) * (d - c)``.

Left out: signs before numbers, powers, numbers joined to longer ones.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.safe_arithmetic import Grammar, TooLarge, apply_exact, evaluate_exact, parse
from worldmtp.envs.tasks.strings import check_reward

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
    """Return a number by itself."""
    return Expression(str(number), Fraction(number))


def combine(operator: str, left: Expression, right: Expression) -> Expression:
    """Return the two joined by an operator, in the one way that all equivalent ways of writing share.

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


def check_operators(operators: str) -> None:
    """Raise if the operators cannot be used.

    Raises:
        ValueError: if there is none, one is unknown or repeated, or there is "-" without "+" or "/" without "*".
    """
    if ("-" in operators and "+" not in operators) or ("/" in operators and "*" not in operators):
        raise ValueError(f"operators={operators!r}: '-' comes with '+' and '/' with '*', since a-(b-c) is a+c-b.")
    if not operators or not set(operators) <= set(OPERATORS) or len(set(operators)) < len(operators):
        raise ValueError(f"operators={operators!r} must be some of {OPERATORS!r}, each once.")


def _parts(expression: Expression, kind: str) -> tuple[tuple[int, Expression], ...]:
    return expression.parts if expression.kind == kind else ((1, expression),)


_GRAMMAR = Grammar(signs=False, powers=False, decimals=False, max_digits=9)
_MAX_TRIES = 2_000
_LARGEST_DISTANCE = 1e9  # a component is a float, and a product of many numbers might be too large for one


class Countdown:
    """Write an expression with the value of the target: ``"2,3,7:27=" -> "(2+7)*3"``.

    The numbers stand in order, so that one puzzle has one prompt, and with it one split. As it is made by default there
    are 20,387 puzzles.

    Args:
        num_numbers: numbers of a puzzle.
        max_number: they are uniform in 1..max_number, repeats allowed.
        max_target: the target is an integer in 1..max_target.
        operators: some of ``"+-*/"``; "-" comes with "+" and "/" with "*", since a-(b-c) is a+c-b. Arithmetic is
            exact: 1/3*3 is 1, and a division need not come out even.
        reward: "score" pays an expression of the right numbers with a wrong value 0.5 / (1 + its distance from the
            target), "exact" 1 or 0.
        separator: what ends the prompt.

    Raises:
        ValueError: if a number is out of range, or an operator or the reward is unknown.
    """

    probe_bound = 0.0

    def __init__(
        self,
        num_numbers: int = 4,
        max_number: int = 9,
        max_target: int = 99,
        operators: str = "+-*",
        reward: str = "score",
        separator: str = "=",
    ) -> None:
        if num_numbers < 2 or max_number < 1 or max_target < 1:
            raise ValueError(
                f"expected num_numbers >= 2, max_number >= 1 and max_target >= 1, got {num_numbers}, {max_number} and "
                f"{max_target}."
            )
        check_operators(operators)
        check_reward(reward)
        self.num_numbers, self.max_number, self.max_target = num_numbers, max_number, max_target
        self.operators, self.reward, self.separator = operators, reward, separator

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """Random numbers joined by random operators, again until their value is a target.

        Raises:
            ValueError: if that hardly ever happens.
        """
        for _ in range(_MAX_TRIES):
            numbers = sorted(rng.integers(1, self.max_number + 1, size=self.num_numbers).tolist())
            made = self._random_expression(rng, numbers)
            if made is not None and made.value.denominator == 1 and 1 <= made.value <= self.max_target:
                prompt = f"{','.join(map(str, numbers))}:{made.value}{self.separator}"
                return Example(prompt=prompt, answer=made.text, meta={"numbers": numbers, "target": int(made.value)})
        raise ValueError(
            f"{_MAX_TRIES} random expressions of {self.num_numbers} numbers up to {self.max_number} with "
            f"{self.operators!r} had no value in 1..{self.max_target}; raise max_target or allow other operators."
        )

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """1 for an expression of exactly these numbers with exactly this value, else 0 or partial credit.

        The reason tells what is wrong: "no_expression", "wrong_operator", "wrong_numbers", "division_by_zero",
        "too_large" or "wrong_value". The component ``distance``, of the value from the target, is there for the right
        numbers only.
        """
        numbers, target = self._puzzle(example.prompt)
        components = {"parses": 0.0, "uses_numbers": 0.0}
        try:
            expression = parse(text, _GRAMMAR)
        except ValueError:
            return Score(value=0.0, components=components, reason="no_expression")
        components |= {"parses": 1.0, "uses_numbers": float(sorted(expression.numbers) == numbers)}
        if not expression.operators <= set(self.operators):
            return Score(value=0.0, components=components, reason="wrong_operator")
        if not components["uses_numbers"]:  # and no value either: of other numbers it might be astronomical
            return Score(value=0.0, components=components, reason="wrong_numbers")
        try:
            distance = abs(evaluate_exact(expression) - target)
        except ZeroDivisionError:
            return Score(value=0.0, components=components, reason="division_by_zero")
        except TooLarge:
            return Score(value=0.0, components=components, reason="too_large")
        components["distance"] = float(distance) if distance < _LARGEST_DISTANCE else _LARGEST_DISTANCE
        if distance == 0:
            return Score(value=1.0, components=components, exact=True)
        value = 0.5 / (1.0 + components["distance"]) if self.reward == "score" else 0.0
        return Score(value=value, components=components, reason="wrong_value")

    def _random_expression(self, rng: np.random.Generator, numbers: list[int]) -> Expression | None:
        """The numbers joined in random order by random operators; None where that divides by zero."""
        waiting = [number_expression(number) for number in numbers]
        for first, second, third in rng.random((len(numbers) - 1, 3)).tolist():
            left = waiting.pop(int(first * len(waiting)))
            right = waiting.pop(int(second * len(waiting)))
            operator = self.operators[int(third * len(self.operators))]
            if operator == "/" and right.value == 0:
                return None
            waiting.append(combine(operator, left, right))
        return waiting[0]

    def _puzzle(self, prompt: str) -> tuple[list[int], int]:
        numbers, _, target = prompt.removesuffix(self.separator).partition(":")
        try:
            return sorted(int(number) for number in numbers.split(",")), int(target)
        except ValueError as error:
            raise ValueError(f"the prompt {prompt!r} is no puzzle like '2,3,7:27{self.separator}'.") from error
