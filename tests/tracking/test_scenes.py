"""Scenes: what the file holds, what survives a kill, and the curves over training."""

import json

import pytest

from worldmtp.tracking import read_records
from worldmtp.tracking.scenes import Scene, SceneLog, SceneRow, overview


def test_a_line_an_evaluation_with_rounded_numbers(scene, tmp_path):
    log = SceneLog(tmp_path)
    log.write([scene(1 / 3, False)], 64)
    log.write([], 70)
    log.write([scene(0.5, True)], 128)
    records = read_records(tmp_path / "imagination.jsonl")
    assert [record["step"] for record in records] == [64, 128]
    (first,) = records[0]["scenes"]
    assert first["tokens"] == ["2", "+", "5", "<eos>", "ok", "7"]
    assert first["replies"] == [4]
    assert first["predicted"][0]["guesses"][2] == {
        "top": [["6", 0.6667], ["5", 0.3333]],
        "realized": 0.3333,
        "accept": 1.0,
    }
    assert first["imagined"][0]["root"] == 1
    assert first["imagined_return"] == [None, 0.3333, None, None, None, None]


def test_resuming_drops_later_lines_and_one_cut_by_a_kill(scene, tmp_path):
    log = SceneLog(tmp_path)
    log.resume_at(-1)  # nothing there yet
    assert not (tmp_path / "imagination.jsonl").exists()
    for step in (10, 20, 30):
        log.write([scene(0.5, True)], step)
    with (tmp_path / "imagination.jsonl").open("a") as file:
        file.write('{"step": 40, "sce')
    log.resume_at(20)
    log.write([scene(0.5, True)], 25)
    lines = (tmp_path / "imagination.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 25]
    log.resume_at(-1)
    assert (tmp_path / "imagination.jsonl").read_text() == ""


def test_curves_are_of_the_deeper_heads_and_of_the_first_root(scene, tmp_path):
    log = SceneLog(tmp_path)
    log.write([scene(0.25, False), scene(0.9, True)], 0)
    log.write([scene(0.5, False), scene(0.9, True)], 64)
    found = overview(read_records(tmp_path / "imagination.jsonl"))
    assert found["steps"] == [0, 64]
    first, second = found["prompts"]
    # Depth 2 spoke of one token and held "9" likeliest; depth 1, which was right twice, does not count.
    assert first == {"text": "2+", "agreement": [0.0, 0.0], "imagined": [0.25, 0.5], "realized": [0.75, 0.75]}
    assert (second["agreement"], second["imagined"]) == ([1.0, 1.0], [0.9, 0.9])
    assert overview([]) == {"steps": [], "prompts": []}


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"'depth 1' has 1 entries for a text of 2 tokens; align every row by target"):
        Scene(("a", "b"), 1, (), 0.0, False, (SceneRow("depth 1", (None,)),), (), (None, None), (None, None))
