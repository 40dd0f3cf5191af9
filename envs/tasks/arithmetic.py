"""Arithmetic in exact rational numbers, read without ``eval``: what Countdown's texts are worth is decided here."""

import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(?:(0|[1-9][0-9]{0,8})|([-+*/()]))")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def parse_expression(text: str) -> tuple[list[str], list[int]]:
    """The expression in postfix order, and its numbers from left to right.

    Numbers are ASCII digits without leading zeros or signs; operators are +, -, * and /, with their usual precedence,
    from left to right; blanks are free. Dijkstra's shunting yard, which needs no recursion: no text is too deep.

    Raises:
        ValueError: if the text is no such expression.
    """
    postfix: list[str] = []
    waiting: list[str] = []
    expects_value, place = True, 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        token = match[match.lastindex or 0] if match else ""
        if match is None or (token.isdigit() or token == "(") != expects_value:
            raise ValueError(f"{text!r} is no expression from character {place} on.")
        place = match.end()
        if token.isdigit():
            postfix.append(token)
            expects_value = False
        elif token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting and waiting[-1] != "(":
                postfix.append(waiting.pop())
            if not waiting:
                raise ValueError(f"{text!r} closes a bracket that it did not open.")
            waiting.pop()
        else:
            while waiting and _PRECEDENCE.get(waiting[-1], 0) >= _PRECEDENCE[token]:
                postfix.append(waiting.pop())
            waiting.append(token)
            expects_value = True
    if expects_value or "(" in waiting:
        raise ValueError(f"{text!r} is an expression that is not finished.")
    postfix.extend(reversed(waiting))
    return postfix, [int(token) for token in postfix if token.isdigit()]


def evaluate(postfix: list[str]) -> Fraction:
    """The exact value of an expression in postfix order.

    Raises:
        ZeroDivisionError: if it divides by zero.
    """
    values: list[Fraction] = []
    for token in postfix:
        if token.isdigit():
            values.append(Fraction(int(token)))
            continue
        right, left = values.pop(), values.pop()
        values.append(apply(token, left, right))
    return values[0]


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """One operation.

    Raises:
        ZeroDivisionError: if it divides by zero.
    """
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right
