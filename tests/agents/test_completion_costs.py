"""Whether more real answers are the better buy: the arithmetic by hand, from a log's second half."""

import pytest

from worldmtp.agents.imagination.completion_costs import CompletionCosts, completion_costs


def record(completion: float, below: float, above: float, **changes: float) -> dict[str, float]:
    return {
        "time/rollout_seconds": 0.1,
        "time/env_seconds": 0.05,
        "time/update_seconds": 0.05,
        "time/imagination_seconds": 9.0,
        "time/completion_seconds": completion,
        "imagination/rung_0/r2": below,
        "imagination/rung_3/r2": above,
    } | changes


@pytest.mark.parametrize(
    ("costs", "as_many", "recommends"),
    [
        # .8 of the variance is left without and .2 with completions: four times the answers, .6 s more.
        (CompletionCosts(0.2, 0.7, 0.2, 0.8), 4.0, True),
        (CompletionCosts(0.2, 0.5, 0.2, 0.8), 4.0, False),
        # Completions that know nothing are worth no further answer, whatever they cost.
        (CompletionCosts(0.2, 0.01, 0.5, 0.4), 1.0, True),
        # A critic worse than none is not served, so it is compared with none.
        (CompletionCosts(0.2, 0.3, -3.0, 0.5), 2.0, True),
    ],
)
def test_costs_by_hand(costs: CompletionCosts, as_many: float, recommends: bool) -> None:
    assert costs.as_many == pytest.approx(as_many)
    assert costs.recommends_answers is recommends
    assert ("raise agent.rollout.num_prompts" in str(costs)) is recommends


def test_a_perfect_critic_is_worth_many_answers_and_not_an_error() -> None:
    assert CompletionCosts(0.2, 1.0, 0.0, 1.0).as_many > 1e5


def test_the_second_half_of_the_iterations_counts_and_other_records_do_not() -> None:
    log = [
        {"eval/exact": 0.5},
        record(9.0, 0.9, 0.0),
        record(9.0, 0.9, 0.0),
        record(0.6, 0.1, 0.7),
        record(0.8, 0.3, 0.9),
        {"eval/exact": 0.5},
    ]
    costs = completion_costs(log)
    assert costs is not None
    assert vars(costs) == pytest.approx(vars(CompletionCosts(0.2, 0.7, 0.2, 0.8)))
    assert "took 0.70 s an iteration, as much as 3.5 times its real answers, and lifted r2 from 0.20 to 0.80" in str(
        completion_costs(log)
    )


def test_the_best_of_the_other_rungs_is_what_there_would_be_without() -> None:
    costs = completion_costs([record(0.5, 0.1, 0.6, **{"imagination/rung_1/r2": 0.4, "imagination/rung_2/r2": 0.3})])
    assert costs is not None
    assert costs.r2_without == 0.4


def test_a_run_without_completions_is_told_nothing() -> None:
    plain = record(0.0, 0.1, 0.2)
    del plain["time/completion_seconds"]
    assert completion_costs([plain]) is None
    assert completion_costs([]) is None
