"""PathStar against a solver of its own, hand-worked graphs, and what the env makes of it."""

import math
from collections import deque
from itertools import pairwise

import gymnasium
import numpy as np
import pytest

from worldmtp.envs import Example, check_text_env, check_vector_env, make_task
from worldmtp.envs.tasks.path_star import NODE_NAMES, PathStar

NO_IDS = np.zeros(0, dtype=np.int64)
SHAPES = [(2, 3, 5), (2, 4, 7), (2, 5, 12), (3, 4, 10), (5, 5, 21), (5, 5, 50)]
# arms a-b-c-d and a-e-f-g, edges shuffled by hand; from a to g
HAND = Example(prompt="bcefabfgaecdag=", answer="efg")


def shortest_paths(prompt):
    """All shortest paths from start to goal of a prompt, by breadth-first search over its edges; starts left out."""
    body = prompt[:-1]
    edges = [body[place : place + 2] for place in range(0, len(body) - 2, 2)]
    start, goal = body[-2:]
    found, queue = [], deque([start])
    while queue:
        path = queue.popleft()
        if path[-1] == goal:
            found.append(path[1:])
            continue
        queue.extend(path + target for source, target in edges if source == path[-1] and target not in path)
    return found


def test_a_graph_worked_by_hand():
    assert shortest_paths(HAND.prompt) == ["efg"]
    task = PathStar(2, 4, 7)
    score = task.score(HAND, "efg", NO_IDS)
    assert (score.value, score.exact) == (1.0, True)
    assert score.components == {"position_match": 1.0, "first_node": 1.0, "walks_an_arm": 1.0}


@pytest.mark.parametrize(
    ("text", "match", "first_node", "walks_an_arm"),
    [
        ("bcd", 0.0, 0.0, 1.0),  # the other arm: a good walk, a wrong plan
        ("ecd", 1 / 3, 1.0, 0.0),  # e-c is no edge
        ("efgg", 3 / 4, 1.0, 0.0),  # too long
        ("ef", 2 / 3, 1.0, 0.0),  # an arm half walked
        ("fg", 0.0, 0.0, 0.0),  # edges, but not from the start
        ("aefg", 0.0, 0.0, 0.0),  # the start is not part of the answer
        ("", 0.0, 0.0, 0.0),
        ("zz", 0.0, 0.0, 0.0),
    ],
)
def test_a_wrong_answer_is_worth_nothing_and_its_kind_is_told(text, match, first_node, walks_an_arm):
    exact = PathStar(2, 4, 7).score(HAND, text, NO_IDS)
    assert (exact.value, exact.exact) == (0.0, False)
    components = {"position_match": match, "first_node": first_node, "walks_an_arm": walks_an_arm}
    assert exact.components == pytest.approx(components)
    assert PathStar(2, 4, 7, reward="score").score(HAND, text, NO_IDS).value == pytest.approx(match)


@pytest.mark.parametrize(("degree", "length", "num_names"), SHAPES)
def test_the_answer_is_the_one_path_a_search_finds(degree, length, num_names):
    task, rng = PathStar(degree, length, num_names), np.random.default_rng(0)
    for _ in range(50):
        example = task.sample(rng, "train")
        assert shortest_paths(example.prompt) == [example.answer]
        score = task.score(example, example.answer, NO_IDS)
        assert (score.value, score.components["walks_an_arm"]) == (1.0, 1.0)


@pytest.mark.parametrize(("degree", "length", "num_names"), SHAPES)
def test_every_graph_is_a_star_of_equal_arms(degree, length, num_names):
    task, rng = PathStar(degree, length, num_names), np.random.default_rng(1)
    for _ in range(20):
        example = task.sample(rng, "train")
        body = example.prompt.removesuffix("=")
        edges = [body[place : place + 2] for place in range(0, len(body) - 2, 2)]
        sources = [source for source, _ in edges]
        targets = [target for _, target in edges]
        start = body[-2]
        # degree * (length - 1) edges, each node entered once, only the start left more than once
        assert len(edges) == len(set(targets)) == degree * (length - 1)
        assert (sources.count(start), start in targets) == (degree, False)
        assert all(sources.count(target) <= 1 for target in targets)
        assert set(body) <= set(NODE_NAMES[:num_names])
        assert len(example.prompt) == 2 * degree * (length - 1) + 3


def test_no_arm_is_told_by_its_place_or_its_name():
    """In G(2, 3) "the arm whose first edge comes first" and "the smaller first node" are right half of the time.

    2,000 graphs at 4 standard deviations of sqrt(1/4 / 2000): either fails by chance once in 8,000 runs.
    """
    task, rng = PathStar(2, 3, 5), np.random.default_rng(0)
    first_place, smaller_name = [], []
    for _ in range(2_000):
        example = task.sample(rng, "train")
        start = example.prompt[-3]
        firsts = [b for a, b in zip(example.prompt[:8:2], example.prompt[1:8:2], strict=True) if a == start]
        first_place.append(firsts[0] == example.answer[0])
        smaller_name.append(min(firsts) == example.answer[0])
    for hits in (first_place, smaller_name):
        assert abs(np.mean(hits) - 0.5) < 4 * math.sqrt(0.25 / 2_000)


def test_following_edges_after_a_guess_is_right_once_in_degree():
    """Clever Hans by hand: a random first node, then look-ups. 2,000 graphs of degree 4 at 4 standard deviations."""
    task, rng = PathStar(4, 3, 9), np.random.default_rng(0)
    scores = []
    for _ in range(2_000):
        example = task.sample(rng, "train")
        body = example.prompt[:-3]
        edges = [body[place : place + 2] for place in range(0, len(body), 2)]
        first = rng.choice([target for source, target in edges if source == example.prompt[-3]])
        (second,) = [target for source, target in edges if source == first]
        scores.append(task.score(example, first + second, NO_IDS))
    assert all(score.components["walks_an_arm"] == 1.0 for score in scores)
    assert abs(np.mean([score.value for score in scores]) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2_000)


def test_the_same_generator_gives_the_same_graphs():
    first, second = (PathStar().sample(np.random.default_rng(7), "train") for _ in range(2))
    assert first == second
    assert PathStar().sample(np.random.default_rng(8), "train") != first


def test_train_and_held_out_graphs_are_disjoint():
    envs = gymnasium.make_vec("worldmtp/PathStar-v0", num_envs=2, pool_size=500)
    prompts = {}
    for split in ("train", "heldout"):
        seen = set()
        for seed in range(20):
            _, infos = envs.reset(seed=seed, options={"split": split})
            seen |= set(infos["prompt_text"])
        prompts[split] = seen
    assert all(len(seen) > 10 for seen in prompts.values())
    assert not prompts["train"] & prompts["heldout"]


def test_the_budgets_of_the_id_fit_to_the_token():
    kwargs = gymnasium.spec("worldmtp/PathStar-v0").kwargs
    example = make_task("PathStar", kwargs["task_kwargs"]).sample(np.random.default_rng(0), "train")
    assert (kwargs["max_prompt"], kwargs["max_new"]) == (len(example.prompt), len(example.answer) + 1)
    names = NODE_NAMES[: kwargs["task_kwargs"]["num_names"]]
    assert kwargs["tokenizer"]["alphabet"] == names + "="


def test_it_passes_the_checks_with_partial_credit():
    task_kwargs = gymnasium.spec("worldmtp/PathStar-v0").kwargs["task_kwargs"] | {"reward": "score"}
    changes = {"pool_size": 64, "task_kwargs": task_kwargs}
    report = check_text_env("worldmtp/PathStar-v0", num_examples=24, **changes)
    assert (report.oracle_value, report.prompt_overlap, report.scorer_errors) == (1.0, 0.0, 0)
    check_vector_env(
        lambda n, mode: gymnasium.make_vec("worldmtp/PathStar-v0", n, autoreset_mode=mode, **changes), num_steps=30
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"degree": 1}, "degree >= 2 and length >= 3, got 1 and 5"),
        ({"length": 2}, "degree >= 2 and length >= 3, got 2 and 2"),
        ({"num_names": 8}, r"num_names=8 must lie in 9..62: 2 arms of 5 nodes that share the start are 9 nodes"),
        ({"num_names": 63}, r"num_names=63 must lie in 9..62"),
        ({"reward": "partial"}, "reward='partial' is unknown"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PathStar(**kwargs)


def test_edges_of_the_hand_worked_graph_are_its_arms():
    """Guards the fixture: the six edges of a-b-c-d and a-e-f-g, in another order."""
    edges = {HAND.prompt[place : place + 2] for place in range(0, 12, 2)}
    assert edges == {a + b for arm in ("abcd", "aefg") for a, b in pairwise(arm)}
