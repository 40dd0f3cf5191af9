"""The report: whole, offline, escaped, and open about what is missing."""

import base64
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from worldmtp.analysis import save_artefact, write_report
from worldmtp.analysis.artefacts import token_strip
from worldmtp.analysis.figures import learning_curves
from worldmtp.analysis.report import stage_seconds
from worldmtp.analysis.run_files import Series, read_run
from worldmtp.analysis.summary import ArmSummary, RunSummary, write_summary
from worldmtp.statistics import wilson_interval
from worldmtp.tracking import MultiWriter

HOSTILE = "<script>alert('1')</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def full_run(tmp_path_factory, make_artefact, marginal_heads):
    """A run directory with everything in it, and its report."""
    run_dir = tmp_path_factory.mktemp("runs") / "a run"
    artefact = make_artefact(marginal_heads, tokens_text=("<eos>", HOSTILE))
    # Roots 0..2 imagine how often the last token is 1: A^3, A^2 and A at (token, 1).
    for root, k in enumerate([3, 2, 1]):
        law = marginal_heads[k - 1][artefact.input_ids[:, root], 1]
        artefact.imagined_return[:, root] = law
        artefact.realized_return[:, root] = artefact.input_ids[:, 3]
    save_artefact(artefact, run_dir / "artefacts", "ppo")
    save_artefact(make_artefact([None]), run_dir / "artefacts", "before")
    arms = (
        ArmSummary("warm start", wilson_interval(40, 100), (1.0,), artefact="before"),
        ArmSummary(f"PPO {HOSTILE}", wilson_interval(75, 100), (1.0, 0.8925, 0.7), 0.31, 0.34, 180.0, "ppo"),
    )
    write_summary(RunSummary(arms, 185.0, "2 cores"), run_dir)
    (run_dir / "config.yaml").write_text(f"task: {HOSTILE}\n", encoding="utf-8")
    with MultiWriter(run_dir / "sft") as writer:
        writer.scalars({"sft/loss": 2.0}, step=1)
        writer.scalars({"sft/loss": 1.0}, step=2)
    with MultiWriter(run_dir) as writer:
        for step in [100, 2000]:
            writer.scalars({"rollout/return_mean": 0.5, "rollout/exact_mean": float("nan")}, step=step)
            writer.scalars(
                {"time/rollout_seconds": 2.0, "time/total_seconds": 9.0, "time/env_fraction": 0.02}, step=step
            )
        writer.scalars({"eval/exact": 0.75, "eval/exact_lo90": 0.7, "eval/exact_hi90": 0.8}, step=2000)
    assert write_report(run_dir) == run_dir / "report.html"
    return run_dir


def test_a_full_run_makes_a_whole_page(full_run):
    page = Page((full_run / "report.html").read_text(encoding="utf-8"))
    assert "Not in this report" not in page.text
    for expected in [
        # Wilson, 75 of 100: centre .75 + 2.7055 / 200 = .7635, half width 1.6449 sqrt(.001875 + .0000676) = .0725,
        # both divided by 1.02706.
        "0.750 [0.673, 0.814]",
        "PPO <script>alert('1')</script>",
        "0.892",
        "3m05s wall clock on 2 cores",
        "Evaluation: ppo",
        "Sequence",
        "took 2.0% of an iteration",
    ]:
        assert expected in page.text, expected
    # The order of the headline table, not of the alphabet.
    assert page.text.index("Evaluation: before") < page.text.index("Evaluation: ppo")
    # Learning, depths, time; strata and reliability of each evaluation; the scatter of one.
    assert len(page.named("img")) == 3 + 2 * 2 + 1
    # Six strips of each evaluation are the figures without a picture.
    assert len(page.named("figure")) - len(page.named("img")) == 2 * 6


@pytest.mark.usefixtures("quick_report")
def test_episodes_of_a_world_are_told_turn_by_turn(tmp_path, make_artefact):
    """The Markov world's third token as its reply: one episode each of lowest, middle and highest return, escaped."""
    acted = np.tile([False, True, False, True], (128, 1))
    save_artefact(make_artefact([None], action_mask=acted, tokens_text=("a", HOSTILE)), tmp_path / "artefacts", "final")
    content = write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(content)
    assert [row["class"] for row in page.named("tr") if "class" in row] == ["world", "policy"] * 6
    for words in ("Lowest return, sequence", "Middle return", "Highest return", "return 1 in 2 turns, exact"):
        assert words in page.text
    assert HOSTILE not in content
    assert "Episodes, turn by turn" in page.text


def test_an_answer_is_no_conversation(full_run):
    assert "turn by turn" not in (full_run / "report.html").read_text(encoding="utf-8")


def test_the_page_is_offline_and_nothing_in_it_runs(full_run):
    from PIL import Image

    content = (full_run / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert page.named("script") == []
    assert page.named("link") == []
    assert not re.search(r"https?://", content)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    policy = next(item for item in page.named("meta") if item.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for picture in page.named("img"):
        header, encoded = picture["src"].split(",", 1)
        assert header == "data:image/png;base64"
        assert picture["alt"]
        Image.open(io.BytesIO(base64.b64decode(encoded))).verify()
    # Token 1 has markup for its text. It is escaped in the strips as in the headline table and the configuration.
    assert HOSTILE not in content
    assert content.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;") == page.text.count(HOSTILE) > 2
    assert len(content) < 5_000_000


@pytest.mark.usefixtures("quick_report")
def test_a_strip_is_a_table_whose_cells_are_aligned_and_coloured(tmp_path, make_artefact):
    artefact = make_artefact([None, np.array([[0.2, 0.8], [0.2, 0.8]])])  # depth 2 says "b" with .8 whatever happens
    save_artefact(artefact, tmp_path / "artefacts", "ppo")
    content = write_report(tmp_path).read_text(encoding="utf-8")
    strip = Page(content[content.index('<table class="strip">') : content.index("</table>", content.index('strip">'))])
    assert strip.text == "realizedaaaa depth 1aaa depth 2bb"
    rows = [[]]
    for tag, attributes in strip.tags:
        if tag == "tr":
            rows.append([])
        elif tag == "td":
            rows[-1].append((attributes["style"].removeprefix("background:"), attributes.get("class")))
    _, realized, first, second = rows
    assert realized == [("rgb(238, 239, 242)", None)] + [("rgb(212, 224, 241)", None)] * 3
    # Depth 1 states the law of the world and says "a" with .75 after "a": .12 + .88 * .75 = .78 of the way from white
    # to full, so 255 + .78 * (96 - 255) = 131, 255 - 60.1 = 195, 255 - 106.9 = 148.
    assert artefact.input_ids[0].tolist() == [0, 0, 0, 0]
    assert first == [("rgb(250, 250, 251)", None)] + [("rgb(131, 195, 148)", None)] * 3
    # Depth 2 is wrong with .8, .824 of the way: 255 - .824 * 33 = 228, 255 - 122.8 = 132, 255 - 131.0 = 124.
    assert second == [("rgb(250, 250, 251)", None)] * 2 + [("rgb(228, 132, 124)", "wrong")] * 2


def test_the_same_files_give_the_same_page(tmp_path, make_artefact):
    save_artefact(make_artefact([None]), tmp_path / "artefacts", "ppo")
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_an_empty_run_says_what_is_missing(tmp_path):
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Not in this report" in text
    for missing in ["config.yaml is missing", "metrics.jsonl is missing", "sft/metrics.jsonl is missing",
                    "artefacts/ holds no evaluation", "summary.json is missing"]:  # fmt: skip
        assert missing in text, missing
    assert "What the numbers mean" in text
    with pytest.raises(FileNotFoundError, match="No run directory at"):
        write_report(tmp_path / "nowhere")


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path, full_run):
    full_run = shutil.copytree(full_run, tmp_path / "copy")
    (full_run / "artefacts" / "before.npz").write_bytes(b"damaged")
    (full_run / "summary.json").write_text("{")
    shutil.rmtree(full_run / "sft")
    with (full_run / "metrics.jsonl").open("a") as file:
        file.write("not json\n")
    text = Page(write_report(full_run).read_text(encoding="utf-8")).text
    assert "'before' cannot be read" in text
    assert "does not match the checksum" in text
    assert re.search(r"metrics.jsonl cannot be read: .*line 6 is not JSON", text)
    assert re.search(r"summary.json is not JSON", text)
    assert "Evaluation: ppo" in text


def test_depths_that_no_root_reaches_and_single_sequences_do_not_stop_the_report(tmp_path, make_artefact):
    artefact = make_artefact([None, None, None])
    artefact.action_mask[:, 3:] = False
    artefact.rewards[:] = artefact.returns[:, None] = 0.0
    artefact.chain_entropy[:] = 0.3
    save_artefact(artefact, tmp_path / "artefacts", "short")
    silent = make_artefact([None])
    silent.action_mask[:] = False
    silent.rewards[:] = silent.returns[:, None] = 0.0
    save_artefact(silent, tmp_path / "artefacts", "silent")
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Evaluation: short" in text
    assert "undefined" in text
    assert "No prefix of this evaluation has a policy token" in text


@pytest.mark.usefixtures("quick_report")
def test_turns_of_one_token_have_no_depth_to_look_ahead(tmp_path, make_artefact):
    """Two tokens of the policy, each a turn of its own: no depth but the first foresees an action."""
    turns = make_artefact([None, None])
    turns.action_mask[:] = False
    turns.action_mask[:, [1, 3]] = True
    turns.rewards[:] = turns.returns[:, None] = 0.0
    save_artefact(turns, tmp_path / "artefacts", "turns")
    assert [row.label for row in token_strip(turns, 0).rows] == ["depth 1"]
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Each turn is one token, so that no depth looks ahead to another." in text
    assert "drafts kept per prefix" not in text


def test_series_keep_steps_and_mark_what_was_not_finite(full_run):
    metrics = read_run(full_run).metrics
    assert metrics["rollout/return_mean"].steps.tolist() == [100, 2000]
    assert np.isnan(metrics["rollout/exact_mean"].values).all()
    assert "text" not in metrics


def test_evaluations_of_the_warm_start_are_no_points_of_the_run():
    def series(*values):
        return Series(steps=np.arange(len(values), dtype=float), values=np.array(values))

    run = {"eval/exact": series(0.5, 0.75)}
    figure = learning_curves(run, {"sft/loss": series(2.0, 1.0), "eval/exact": series(0.0, 0.1, 0.2)})
    assert figure is not None
    loss, exact = (ax.get_lines()[0].get_ydata().tolist() for ax in figure.axes)
    assert (loss, exact) == ([2.0, 1.0], [0.5, 0.75])


def test_stage_seconds_are_sums_without_the_total():
    def series(*values):
        return Series(steps=np.arange(float(len(values))), values=np.array(values, dtype=np.float64))

    metrics = {
        "time/world_model_seconds": series(1.0, 2.5),
        "time/total_seconds": series(9.0, 9.0),
        "time/env_fraction": series(0.1, 0.1),
        "losses/policy": series(1.0),
    }
    assert stage_seconds(metrics) == {"world model": 3.5}


def test_analysis_imports_no_environment_agent_or_torch():
    program = (
        "import sys, worldmtp.analysis, worldmtp.analysis.report;"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'gymnasium', 'hydra', 'trl') or "
        "m.startswith(('worldmtp.envs', 'worldmtp.agents'))])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
