"""Path-star graphs are what they claim: one path to the goal, told in the order stated; what is right is right."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from worldmtp.studies.path_star import (
    Graphs,
    PathStarConfig,
    PathStarStudy,
    draw_graphs,
    right_nodes,
    summarize_path_star,
)
from worldmtp.studies.protocol import Study

PNG = b"\x89PNG\r\n\x1a\n"
DEGREE, LENGTH, NAMES = 3, 4, 14
NUM_EDGES = DEGREE * (LENGTH - 1)
VARIANTS = {"next_token": {"depth": 1}, "mtp": {"depth": 3, "head": "latent"}}


def drawn(num_graphs: int = 50, seed: int = 0) -> Graphs:
    return draw_graphs(num_graphs, DEGREE, LENGTH, NAMES, np.random.default_rng(seed))


def edges_of(text: list[int]) -> list[tuple[int, int]]:
    return [(text[2 * i], text[2 * i + 1]) for i in range(NUM_EDGES)]


def path_to(edges: list[tuple[int, int]], start: int, goal: int) -> list[int]:
    """Breadth first, from the start, by the edges alone; the start is left out. Fails if there are two ways."""
    found, frontier = [], [[start]]
    while frontier:
        path = frontier.pop(0)
        if path[-1] == goal:
            found.append(path[1:])
        frontier += [[*path, target] for source, target in edges if source == path[-1]]
    (only,) = found
    return only


def test_the_answer_is_the_only_path_to_the_goal():
    graphs = drawn()
    assert graphs.prompt_length == 2 * NUM_EDGES + 3
    for text in graphs.input_ids.tolist():
        start, goal, mark, *answer = text[2 * NUM_EDGES :]
        assert mark == NAMES
        assert answer == path_to(edges_of(text), start, goal)
        assert len(answer) == LENGTH - 1


def test_graphs_are_stars_of_distinct_names():
    for text in drawn().input_ids.tolist():
        edges, centre = edges_of(text), text[2 * NUM_EDGES]
        targets = [target for _, target in edges]
        assert len(set(targets)) == NUM_EDGES  # each node but the centre is entered once
        assert centre not in targets
        assert sum(source == centre for source, _ in edges) == DEGREE
        assert set(targets) | {centre} <= set(range(NAMES))


def test_neither_names_nor_places_give_the_arm_away():
    # Of 600 graphs, the answer's first edge stands in each of nine places, and its name is each of 14, equally often:
    # 66.7 +- 7.7 and 42.9 +- 6.3. Five deviations on 23 counts fail for fewer than one seed in 70 000.
    texts = drawn(600).input_ids
    places = torch.tensor([edges_of(text).index((text[18], text[21])) for text in texts.tolist()]).bincount(minlength=9)
    names = texts[:, 21].bincount(minlength=NAMES)
    assert bool((places - 600 / 9).abs().max() < 38.5)
    assert bool((names - 600 / 14).abs().max() < 31.6)


def test_only_the_answer_is_to_be_predicted():
    graphs = drawn(4)
    batch = graphs.batch()
    assert torch.equal(batch.input_ids, graphs.input_ids)
    assert bool((batch.labels[:, :21] == -100).all())
    assert torch.equal(batch.labels[:, 21:], graphs.input_ids[:, 21:])
    assert batch.labels.shape[1] == 21 + 3


def test_graphs_follow_their_generator(global_rng_untouched):
    with global_rng_untouched():
        assert torch.equal(drawn(seed=1).input_ids, drawn(seed=1).input_ids)
    assert not torch.equal(drawn(seed=1).input_ids, drawn(seed=2).input_ids)


def test_right_nodes_are_read_one_position_before(make_model):
    model, graphs = make_model(vocab_size=NAMES + 1, depth=1).train(), drawn(2)
    said = graphs.input_ids.roll(-1, dims=1)  # right everywhere
    said[1, 21] = NAMES  # but after the second graph's first node
    model.forward = lambda input_ids, **_: SimpleNamespace(logits=functional.one_hot(said, NAMES + 1).float())
    assert right_nodes(model, graphs).tolist() == [[True, True, True], [True, False, True]]
    assert model.training


def test_table_by_hand():
    def result(variant: str, seed: int, exact: list[bool], first: list[bool]) -> dict:
        curve = [{"step": 10, "exact": 0.5, "first": 0.5}, {"step": 20, "exact": 0.75, "first": 0.5}]
        return {"variant": variant, "seed": seed, "degree": 4, "curve": curve, "exact": exact, "first": first}

    yes, no = True, False
    results = [
        result("alone", 0, [yes, no, no, no], [yes, yes, no, no]),
        result("mtp", 0, [yes, yes, yes, yes], [yes] * 4),
        result("mtp", 1, [yes, yes, no, no], [yes, yes, yes, no]),
    ]
    summary = summarize_path_star(results)
    lines = summary.markdown.splitlines()
    assert lines[0] == "Exact match on 4 fresh graphs; guessing the arm gives 0.250."
    assert lines[4] == "| alone | 0.250 | 0.250 | 0.500 |"
    # Two seeds, 1 and 0.5; first nodes 1 and 0.75.
    assert lines[5].startswith("| mtp | 0.750 [")
    assert lines[5].endswith("] | 1.000 0.500 | 0.875 |")
    assert summary.headline == pytest.approx(0.75)
    assert summary.figure is not None
    assert summary.figure.startswith(PNG)


def test_a_whole_study(tmp_path, nobody, global_rng_untouched):
    config = PathStarConfig(
        variants=VARIANTS,
        seeds=[0, 1],
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_steps=3,
        batch_size=4,
        eval_every=2,
        num_eval_graphs=10,
    )
    study = pickle.loads(pickle.dumps(PathStarStudy(config)))
    assert isinstance(study, Study)
    with global_rng_untouched():
        study.prepare(tmp_path, nobody)
        results = [json.loads(json.dumps(study.run_arm(arm, tmp_path, nobody))) for arm in study.arms()]
        again = study.run_arm(study.arms()[1], tmp_path, nobody)
    assert again == results[1]
    for found in results:
        assert [point["step"] for point in found["curve"]] == [2, 3]  # every second, and the last
        assert len(found["exact"]) == len(found["first"]) == 10
        assert found["curve"][-1]["exact"] == pytest.approx(sum(found["exact"]) / 10)
        assert all(first or not exact for exact, first in zip(found["exact"], found["first"], strict=True))
    summary = study.summarize(results)
    assert summary.figure is not None
    assert summary.figure.startswith(PNG)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"degree": 1}, "degree=1 must be at least 2"),
        ({"length": 1}, "length=1 must be at least 2"),
        ({"num_names": 8}, "num_names=8 is fewer than the 9 nodes of a graph with 2 arms of 5"),
        ({"eval_every": 0}, "eval_every=0 must be at least 1"),
        ({"variants": {"a": {"head": "latent"}}}, r"variants\.a is given as \['head'\]; it takes the keys"),
        ({"variants": {"a": {"depth": 2, "head": "latnt"}}}, "did you mean 'latent'"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=message):
        PathStarConfig(**({"variants": VARIANTS} | values))
