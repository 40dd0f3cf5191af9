"""The Imagination tab over HTTP: what the plugin serves, by itself and in a live TensorBoard."""

import json
import urllib.request

import pytest
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from worldmtp.tracking.scenes import SceneLog
from worldmtp.tracking.tensorboard_tab import ImaginationPlugin


def plugin(logdir) -> ImaginationPlugin:
    return ImaginationPlugin(TBContext(logdir=None if logdir is None else str(logdir)))


def get(served: ImaginationPlugin, route: str, **query: str):
    return Client(served.get_plugin_apps()[route]).get("/", query_string=query)


def test_runs_are_named_by_their_place_below_the_log_directory(logdir):
    assert get(plugin(logdir), "/runs").json == {"runs": ["first/seed0", "second"]}
    assert get(plugin(logdir / "first" / "seed0"), "/runs").json == {"runs": ["seed0"]}
    assert plugin(logdir).is_active()


@pytest.mark.parametrize("empty", [True, False])
def test_without_scenes_the_tab_is_inactive(tmp_path, empty):
    served = plugin(None if empty else tmp_path)
    assert not served.is_active()
    assert get(served, "/runs").json == {"runs": []}


def test_a_run_has_its_steps_and_each_step_its_scenes(logdir):
    served = plugin(logdir)
    found = get(served, "/run", run="first/seed0").json
    assert found["steps"] == [0, 64, 128]
    assert [prompt["text"] for prompt in found["prompts"]] == ["2+", "2+"]
    scenes = get(served, "/scenes", run="first/seed0", step="64").json["scenes"]
    assert scenes[0]["predicted"][0]["guesses"][2]["top"] == [["5", 0.5], ["6", 0.5]]


def test_what_a_run_adds_is_seen(scene, tmp_path):
    log, served = SceneLog(tmp_path), plugin(tmp_path)
    log.write([scene(0.5, True)], 0)
    assert get(served, "/run", run=tmp_path.name).json["steps"] == [0]
    log.write([scene(0.5, True)], 8)
    with (tmp_path / "imagination.jsonl").open("a") as file:
        file.write('{"step": 9, ')  # being written
    assert get(served, "/run", run=tmp_path.name).json["steps"] == [0, 8]


def test_other_files_are_out_of_reach_and_errors_are_said(logdir, scene, tmp_path):
    served = plugin(logdir)
    for run in ("", "third", "..", "first", str(logdir / "second")):
        answer = get(served, "/run", run=run)
        assert answer.status_code == 404
        assert answer.json["error"].startswith(f"No run {run!r} with a imagination.jsonl below")
    answer = get(served, "/scenes", run="second", step="7")
    assert (answer.status_code, answer.json) == (404, {"error": "No evaluation at step '7'; this run has 0."})
    (tmp_path / "imagination.jsonl").write_text("{}\n")
    answer = get(plugin(tmp_path), "/run", run=tmp_path.name)
    assert answer.status_code == 500
    assert "line 1 is not an object with a step" in answer.json["error"]


def test_the_page_is_served_and_fetches_nothing_from_elsewhere(logdir):
    served = plugin(logdir)
    module = served.frontend_metadata().es_module_path
    for route, kind in {module: "text/javascript", "/tab.css": "text/css"}.items():
        answer = get(served, route)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert "innerHTML" not in answer.text


@pytest.mark.slow
def test_tensorboard_lists_the_tab_and_serves_its_data(board):
    def fetched(route: str):
        with urllib.request.urlopen(f"{board}/data/{route}") as answer:
            return json.load(answer)

    listed = fetched("plugins_listing")["imagination"]
    assert listed["tab_name"] == "Imagination"
    assert listed["enabled"]
    assert fetched("plugin/imagination/runs") == {"runs": ["first/seed0", "second"]}
    assert fetched("plugin/imagination/run?run=first/seed0")["steps"] == [0, 64, 128]
    # Tooltips: TensorBoard's data server passes the description on, as HTML.
    told = fetched("plugin/scalars/tags")["first/seed0/tensorboard"]["losses/policy"]["description"]
    assert told == "<p>clipped surrogate, averaged over action tokens [1]</p>"
