"""Countdown: arithmetic worked by hand, and the solver against every bracketed expression that Python itself reads."""

from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest

from worldmtp.envs import Example, hack_probes
from worldmtp.envs.tasks.countdown import Countdown, check_operators, combine, number_expression
from worldmtp.envs.tasks.safe_arithmetic import Grammar, TooLarge, evaluate, parse

PLAIN = Grammar(signs=False, powers=False, decimals=False, max_digits=9)
NO_IDS = np.zeros(0, dtype=np.int64)
HAND = Example("2,3,7:27=", "(2+7)*3")


def solutions(numbers, target, operators="+-*"):
    """Every expression that uses each number exactly once and has exactly this value, sorted; empty if there is none.

    The search is exhaustive, and its work grows with the number of expressions: milliseconds for four numbers, minutes
    for six.

    Raises:
        ValueError: if there is no number, one is negative, or an operator is unknown.
    """
    return sorted(
        expression.text for expression in all_expressions(numbers, operators) if expression.value == Fraction(target)
    )


def all_expressions(numbers, operators="+-*"):
    """Every expression that uses each number exactly once.

    Raises:
        ValueError: if there is no number, one is negative, or an operator is unknown.
    """
    check_operators(operators)
    if not numbers or min(numbers) < 0:
        raise ValueError(f"numbers={list(numbers)} must be one or more, none of them negative.")
    of_subset = {}  # a subset is the bits of its indices
    for subset in range(1, 2 ** len(numbers)):
        lowest = subset & -subset
        if subset == lowest:
            single = number_expression(numbers[lowest.bit_length() - 1])
            of_subset[subset] = {single.text: single}
            continue
        found = {}
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


def bracketed(numbers, operators):
    """Every full bracketing of every order of the numbers, as text, with its exact value by Python's own parser."""

    def texts(leaves):
        if len(leaves) == 1:
            return [f"Fraction({leaves[0]})"]
        return [
            f"({left}{operator}{right})"
            for split in range(1, len(leaves))
            for left, right in product(texts(leaves[:split]), texts(leaves[split:]))
            for operator in operators
        ]

    for order in set(permutations(numbers)):
        for text in texts(order):
            try:
                yield text, eval(text, {"Fraction": Fraction})
            except ZeroDivisionError:
                continue


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("9-3-2", 4),
        ("9-(3-2)", 8),
        ("8/4/2", 1),
        ("8/(4/2)", 4),
        ("1/3*3", 1),  # exact: in floats it might not be
        ("8/(3-8/3)", 24),
        (" 1 + 2 ", 3),
        ("((((5))))", 5),
        ("0*7", 0),
    ],
)
def test_arithmetic_worked_by_hand(text, value):
    assert evaluate(parse(text, PLAIN)) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "1+",
            "+1",
            "-1",
            "1--2",
            "1 2",
            "01",
            "1)",
            "(1",
            "()",
            "2(3)",
            "1.5",
            "1**2",
            "1//2",
            "x",
            "1e3",
            "٣",
        ),
        *("1=1", "__import__('os')", "9" * 10, "(" * 100_000, "1+2=3", "1,2"),
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(
        ValueError,
        match=r"is no expression|is no whole number|stands for nothing|is not allowed|has a sign|more than|exceeds",
    ):
        parse(text, PLAIN)


def test_brackets_are_bounded():
    assert evaluate(parse("(" * 40 + "1" + ")" * 40, PLAIN)) == 1
    with pytest.raises(TooLarge, match="opens more than 40 brackets"):
        parse("(" * 41 + "1" + ")" * 41, PLAIN)
    with pytest.raises(TooLarge, match="a text of 100001 characters exceeds 1000"):
        parse("(" * 50_000 + "1" + ")" * 50_000, PLAIN)


@pytest.mark.parametrize("sign", ["", "+", "-"])
def test_zeros_before_an_exponent_hide_no_size(sign):
    assert parse(f"1e{sign}00000000300", Grammar()).numbers == [Fraction(10) ** int(f"{sign}300")]
    with pytest.raises(TooLarge, match="has more than 300 digits"):
        parse(f"1e{sign}00000000301", Grammar())


@pytest.mark.parametrize("numbers", ["12", "11", "123", "226", "0123", "3388", "1234"])
@pytest.mark.parametrize("operators", ["+-*", "+-*/"])
def test_the_solver_finds_what_there_is_and_nothing_else(numbers, operators):
    numbers = [int(number) for number in numbers]
    reached = {value for _, value in bracketed(numbers, operators)}
    found = all_expressions(numbers, operators)
    assert {expression.value for expression in found} == reached
    for expression in found:
        parsed = parse(expression.text, PLAIN)
        assert sorted(parsed.numbers) == sorted(numbers)
        assert evaluate(parsed) == expression.value == eval(exactly(expression.text))


def exactly(text):
    return "".join(f"Fraction({character})" if character.isdigit() else character for character in text)


def test_solutions_worked_by_hand():
    assert solutions([1, 2, 3], 6) == ["1*2*3", "1+2+3"]  # orders and idle brackets are not counted again
    assert solutions([2, 3, 7], 27) == ["(2+7)*3"]
    assert solutions([3, 3, 8, 8], 24) == []
    assert solutions([3, 3, 8, 8], 24, "+-*/") == ["8/(3-8/3)"]


def test_examples_come_with_a_solution_that_the_solver_knows():
    for operators in ("+-*", "+-*/", "+-", "*/", "+"):
        task = Countdown(operators=operators, num_numbers=3, max_number=7, max_target=30)
        rng = np.random.default_rng(0)
        for example in (task.sample(rng, "train") for _ in range(15)):
            numbers, target = example.meta["numbers"], example.meta["target"]
            assert example.prompt == f"{','.join(map(str, sorted(numbers)))}:{target}="
            assert example.answer in solutions(numbers, target, operators)
            for solution in solutions(numbers, target, operators):
                score = task.score(example, solution, NO_IDS)
                assert (score.value, score.exact, score.reason) == (1.0, True, "ok")
                assert score.components == {"parses": 1.0, "uses_numbers": 1.0, "distance": 0.0}


@pytest.mark.parametrize(
    ("text", "value", "reason", "components"),
    [
        ("3*(7+2)", 1.0, "ok", {"parses": 1.0, "uses_numbers": 1.0, "distance": 0.0}),
        ("2*3*7", 0.5 / 16, "wrong_value", {"parses": 1.0, "uses_numbers": 1.0, "distance": 15.0}),
        ("3*7-2", 0.5 / 9, "wrong_value", {"parses": 1.0, "uses_numbers": 1.0, "distance": 8.0}),
        ("3*(7+2)*1", 0.0, "wrong_numbers", {"parses": 1.0, "uses_numbers": 0.0}),
        ("27", 0.0, "wrong_numbers", {"parses": 1.0, "uses_numbers": 0.0}),  # the target itself
        ("3*9", 0.0, "wrong_numbers", {"parses": 1.0, "uses_numbers": 0.0}),
        ("2/3+7", 0.0, "wrong_operator", {"parses": 1.0, "uses_numbers": 1.0}),
        ("3*(7+2)=27", 0.0, "no_expression", {"parses": 0.0, "uses_numbers": 0.0}),
    ],
)
def test_what_is_wrong_is_told(text, value, reason, components):
    score = Countdown(num_numbers=3).score(HAND, text, NO_IDS)
    assert (score.value, score.reason, score.exact) == (pytest.approx(value), reason, reason == "ok")
    assert score.components == components
    exact = Countdown(num_numbers=3, reward="exact").score(HAND, text, NO_IDS)
    assert exact.value == float(reason == "ok")


def test_divisions_are_exact_and_by_zero_are_told():
    task = Countdown(operators="+-*/")
    assert task.score(Example("3,3,8,8:24="), "8/(3-8/3)", NO_IDS).exact
    score = task.score(Example("3,3,8,8:24="), "8/(3-3)+8", NO_IDS)
    assert (score.value, score.reason) == (0.0, "division_by_zero")


def test_nothing_is_paid_for_texts_that_answer_nothing():
    task = Countdown()
    rng = np.random.default_rng(0)
    for example in (task.sample(rng, "train") for _ in range(50)):
        probes = (*hack_probes(), *hack_probes(example.answer))
        assert {task.score(example, probe, NO_IDS).value for probe in probes} == {0.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Countdown(num_numbers=1), "num_numbers >= 2"),
        (lambda: Countdown(operators="+^"), r"operators='\+\^' must be some of '\+-\*/', each once"),
        (lambda: Countdown(operators="-*"), "operators='-\\*': '-' comes with '\\+'"),
        (lambda: Countdown(reward="near"), "reward='near' is unknown"),
        (lambda: solutions([], 1), r"numbers=\[\] must be one or more"),
        (lambda: Countdown().score(Example("2,3=7"), "2", NO_IDS), "'2,3=7' is no puzzle like '2,3,7:27='"),
        (
            lambda: Countdown(operators="+", num_numbers=2, max_target=1).sample(np.random.default_rng(0), "train"),
            r"2000 random expressions of 2 numbers up to 9 with '\+' had no value in 1\.\.1",
        ),
    ],
)
def test_what_is_impossible_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_the_stated_number_of_puzzles():
    from itertools import combinations_with_replacement

    count = 0
    for numbers in combinations_with_replacement(range(1, 10), 4):
        values = {expression.value for expression in all_expressions(numbers)}
        count += sum(value.denominator == 1 and 1 <= value <= 99 for value in values)
    assert f"{count:,}" in Countdown.__doc__
