"""What reasoning-gym's scorers pay too much or we paid too little, found by scanning all of its datasets."""

import math

import numpy as np
import pytest

from worldmtp.envs import Example, make_task

NO_IDS = np.zeros(0, dtype=np.int64)


def made(name, **kwargs):
    return make_task(name, {"calibration_items": 8, "compact": False, **kwargs})


def asked(answer, **metadata):
    return Example("q=", answer, {"entry": {"question": "q", "answer": answer, "metadata": metadata}})


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("1/4", 1.0, "ok"),
        ("2.5e-1", 1.0, "ok"),
        ("25E-2", 1.0, "ok"),
        ("0.25009", 1.0, "ok"),  # the library's tolerance is 0.0001
        ("0.2502", 0.0, "wrong_value"),
        ("0", 0.0, "wrong_value"),  # the library pays 1: the shorter text is a prefix of the other
        ("0.2", 0.0, "wrong_value"),
        ("1/0", 0.0, "no_number"),
        ("nan", 0.0, "no_number"),
        ("1e9999", 0.0, "too_large"),
        ("0.25" + "0" * 2000, 0.0, "too_large"),
    ],
)
def test_a_probability_is_a_number(text, value, reason):
    score = made("coin_flip").score(asked("0.25"), text, NO_IDS)
    assert (score.value, score.reason) == (value, reason)


@pytest.mark.parametrize(
    ("name", "oracle", "metadata", "right", "hidden"),
    [
        ("gsm_symbolic", "144", {}, ["(144)", "144.", "$144", "144.00"], ["144 144", "zz 144", "144 or 145"]),
        ("products", "4291", {}, ["4291.", "4291.0", "+4291", "04291"], ["42910", "1 4291", "(4291)"]),
        (
            "knights_knaves",
            "Ann is a knight, and Bob is a knave.",
            {},
            ["(Ann is a knight, and Bob is a knave.)", "Ann is a knight, and Bob is a knave"],
            ["zz Ann is a knight, and Bob is a knave. zz"],
        ),
    ],
)
def test_brackets_and_forms_of_numbers_hide_nothing(name, oracle, metadata, right, hidden):
    task, example = made(name), asked(oracle, **metadata)
    assert [task.score(example, text, NO_IDS).value for text in right] == [1.0] * len(right)
    assert [task.score(example, text, NO_IDS).value for text in hidden] == [0.0] * len(hidden)


def test_brackets_around_moves():
    task = made("sokoban", calibration_items=2)
    example = task.sample(np.random.default_rng(0), "train")
    assert task.score(example, f"({example.answer})", NO_IDS).value == 1.0
    assert task.score(example, f"{example.answer} zz {example.answer}", NO_IDS).value == 0.0


def test_where_the_library_pays_anything_the_answer_is_known_by_its_letters():
    """game_of_life_halting's scorer pays 1 to every text but the empty one."""
    task = made("game_of_life_halting", calibration_items=2)
    for text, value in (
        ("False", 1.0),
        ("FALSE", 1.0),
        ("false.", 1.0),
        ("True", 0.0),
        ("not False", 0.0),
        ("zz", 0.0),
    ):
        assert task.score(asked("False"), text, NO_IDS).value == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("boxnet", "[]"),
        ("codeio", "{}"),
        ("cryptarithm", "A=1"),
        ("fraction_simplification", "1/2"),
        ("graph_color", "[]"),
        ("group_anagrams", "[]"),
        ("jugs", "[]"),
        ("tsumego", "A1"),
    ],
)
def test_what_only_parses_earns_nothing(name, text):
    task = made(name, calibration_items=4)
    examples = [task.sample(np.random.default_rng(seed), "train") for seed in range(3)]
    scores = [task.score(example, text, NO_IDS) for example in examples]
    assert min(score.components["raw_score"] for score in scores) > 0.0  # the library pays it on every item
    assert [score.value for score in scores if score.components["raw_score"] < 0.3] == [0.0] * len(scores)


def test_cubes_and_cars_that_count_their_moves_are_still_scored():
    """A 1 x 1 x 1 move solves what one move has scrambled; the library repeats a move by the number behind it."""
    task = made("rubiks_cube", calibration_items=2, min_scramble_steps=1, max_scramble_steps=1, cube_size=3)
    example = task.sample(np.random.default_rng(0), "train")
    move = example.meta["entry"]["metadata"]["scramble_moves"].strip()
    inverse = move[:-1] if move.endswith("'") else move + "'"
    assert task.score(example, inverse, NO_IDS).value == 1.0
    assert task.score(example, "R12", NO_IDS).reason == "too_large"


@pytest.mark.parametrize(
    ("name", "config"), [("binary_matrix", {"min_n": 60, "max_n": 60}), ("spiral_matrix", {"min_n": 60, "max_n": 60})]
)
def test_long_literals_of_large_questions_are_read(name, config):
    """The library pays a tenth for a list, whatever its length."""
    task = made(name, calibration_items=2, **config)
    example = task.sample(np.random.default_rng(0), "train")
    rows = [[int(value) for value in row.split()] for row in example.answer.split("\n")]
    text = repr(rows if name == "binary_matrix" else rows[0])
    assert len(text) > 4000
    assert task.score(example, text, NO_IDS).value == pytest.approx(0.1)


def test_long_products_are_read():
    config = {
        "min_terms": 8,
        "max_terms": 16,
        "min_degree": 3,
        "max_degree": 10,
        "min_polynomials": 5,
        "max_polynomials": 6,
    }
    task = made("polynomial_multiplication", calibration_items=2, **config, min_value=1000, max_value=10**8)
    example = task.sample(np.random.default_rng(0), "train")
    assert len(example.answer) > 400
    assert task.score(example, example.answer.replace(" ", ""), NO_IDS).value == 1.0
    assert task.score(example, example.answer.replace(" ", "") + "+1", NO_IDS).reason == "wrong_value"


def test_every_solution_of_a_board_is_right_and_a_list_of_rows_is_half():
    task = made("n_queens", calibration_items=2)
    examples = [task.sample(np.random.default_rng(seed), "train") for seed in range(40)]
    boards = [(example, board) for example in examples for board in example.meta["entry"]["metadata"]["valid_answers"]]
    others = [(example, board) for example, board in boards if board != example.answer]
    assert others  # a board that its own oracle does not show
    for example, board in others:
        assert task.score(example, board, NO_IDS).value == 1.0
        assert task.score(example, repr([row.split() for row in board.split("\n")]), NO_IDS).value == 0.5


@pytest.mark.parametrize("nan", ["NaN", "'nan'", '"NAN"'])
def test_a_list_of_no_numbers_is_not_sorted(nan):
    """The library pays 1: a NaN is no further than 1 from any number, and a list of it is its own sorted copy."""
    task = made("number_sorting")
    example = asked("['-9.5', '2.0', '30.0']", direction="ascending")
    assert task.score(example, "['-9.5', '2.0', '30.0']", NO_IDS).value == 1.0
    score = task.score(example, f"[{nan}, {nan}, {nan}]", NO_IDS)
    assert (score.value, score.reason, score.exact) == (0.0, "no_number", False)


@pytest.mark.parametrize(
    ("name", "oracle", "metadata", "right", "more"),
    [
        ("time_intervals", "5 days", {"task_type": "date"}, ["05 days", "5 days."], ["5 days or 6 days", "5 days zz"]),
        (
            "fraction_simplification",
            "$\\frac{3}{7}$",
            {"simplified_numerator": 3, "simplified_denominator": 7, "numerator": 6, "denominator": 14},
            ["\\frac{3}{7}", "3/7", "$\\frac{3}{7}$."],
            ["$\\frac{3}{7}$ or $\\frac{4}{7}$", "$\\frac{3}{7}$zz"],
        ),
        ("polynomial_equations", "-1.5, 2.0", {}, ["-1.5,2.0", "-1.50, 2"], ["-1.5, 2.0, zz", "zz, -1.5, 2.0"]),
        ("letter_jumble", "out of", {}, ["Out of", "out  of"], ["out of zz", "OUT OF out of"]),
        # Nine ninths add up to 1.0000000000000002, from which the library forgets to take 0.2 for what follows.
        ("spell_backward", "noitcelfe", {}, ["Noitcelfe"], ["noitcelfezz", "noitcelfe noitcelfe"]),
    ],
)
def test_what_a_scorer_leaves_unread_is_not_free(name, oracle, metadata, right, more):
    task, example = made(name), asked(oracle, **metadata)
    for text in right:
        assert task.score(example, text, NO_IDS).value == 1.0, text
    for text in more:
        assert task.score(example, text, NO_IDS).exact is False, text
        assert task.score(example, text, NO_IDS).reason == "containment", text


UNSOLVED = {"answer": "Integral(x*sin(3*x), x) + C", "metadata": {"integrand": "x*sin(3*x)", "variable": "x"}}


@pytest.mark.parametrize(
    ("dataset", "broken"),
    [
        ("simple_integration", UNSOLVED),  # the library's scorer pays it: it is the integral, if not its answer
        ("base_conversion", {"answer": ""}),  # 0 in any base, which its scorer does not pay
    ],
)
def test_questions_whose_oracle_is_no_answer_are_passed_over(dataset, broken, monkeypatch):
    task = make_task(dataset, {"calibration_items": 2, "compact": False})
    entry_of, rng = task._entry, np.random.default_rng(3)
    indices = [int(rng.integers(2**31)) for _ in range(60)]
    solved = [index for index in indices if index % 3]
    monkeypatch.setattr(task, "_entry", lambda index: entry_of(index) | ({} if index % 3 else broken))
    assert math.isnan(task.redrawn_fraction)
    rng = np.random.default_rng(3)
    drawn = [task.sample(rng, "train") for _ in range(20)]
    assert [example.meta["entry"] for example in drawn] == [entry_of(index) for index in solved[:20]]
    number = indices.index(solved[19]) + 1
    assert task.redrawn_fraction == (number - 20) / number > 0
    monkeypatch.setattr(task, "_entry", lambda index: entry_of(index) | broken)
    with pytest.raises(ValueError, match=rf"none of 100 items of {dataset} has an oracle that is paid in full, such "):
        task.sample(rng, "train")


def test_a_question_of_many_answers_needs_no_oracle(monkeypatch):
    task = make_task("graph_color", {"calibration_items": 2, "compact": False})
    assert task.sample(np.random.default_rng(0), "train").answer is None
    assert task.redrawn_fraction == 0.0


@pytest.mark.slow
def test_integrals_are_in_closed_form():
    """Of the first 40 items that are drawn here the library leaves some as they were asked."""
    task = make_task("intermediate_integration", {"calibration_items": 2, "compact": False})
    rng = np.random.default_rng(0)
    drawn = [task.sample(rng, "train") for _ in range(40)]
    assert not [example.answer for example in drawn if "Integral" in example.answer]
    assert 0.0 < task.redrawn_fraction < 0.3
