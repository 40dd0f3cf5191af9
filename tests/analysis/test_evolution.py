"""A run from warm start to end: what each line holds, and where its points stand."""

import numpy as np
import pytest

from worldmtp.analysis.attention_files import AttentionMaps, AttentionRecord, save_attention
from worldmtp.analysis.attention_patterns import PATTERNS, PatternSums
from worldmtp.analysis.evolution import evolution_figure, head_lines, joined_line, optimism_line
from worldmtp.analysis.run_files import read_run
from worldmtp.tracking import JsonlWriter, MultiWriter

ACCEPT = "world_model/depth_3/accept"


def attention(step, goal):
    """Two heads of one layer, the second of which has ``goal`` on the goal, over one query each; nobody has replied."""
    total = np.zeros((len(PATTERNS), 1, 1, 2))
    total[PATTERNS.index("goal"), 0, 0] = [0.25, goal]
    count = np.ones((len(PATTERNS), 1), dtype=np.int64)
    count[PATTERNS.index("reply")] = 0
    none = np.zeros((0, 0), dtype=np.int64)
    maps = np.zeros((0, 1, 2, 0, 0))
    lengths = np.zeros(0, dtype=np.int64)
    gallery = AttentionMaps(maps, np.zeros((0, 0), dtype=np.str_), none, none.astype(bool), lengths, lengths)
    return AttentionRecord(step, PatternSums(total, count), np.full(len(PATTERNS), 0.125), gallery)


@pytest.fixture
def make_run(tmp_path):
    """A run evaluated at steps 0, 50 and 100 of its warm start, and at 0 and 200 tokens; 8 iterations of 25 tokens."""

    def make(warm=True, replies=False, name="run"):
        run_dir = tmp_path / name
        values = np.array([0.5, 1.0, 1.5])
        if warm:
            with MultiWriter(run_dir / "sft", [JsonlWriter(run_dir / "sft")]) as writer:
                for step, accept in ((0, 0.1), (50, 0.2), (100, 0.3)):
                    writer.scalars({ACCEPT: accept, "world_model/depth_3/wci": accept / 2}, step)
                    writer.histogram("eval/entropy", values * (2 - step / 100), step)
                    save_attention(attention(step, 0.1 + step / 1000), run_dir / "sft")
        with MultiWriter(run_dir, [JsonlWriter(run_dir)]) as writer:

            def evaluated(step, accept):
                told = {"world_model/reply_accept": accept, "world_model/reply_whole": accept / 2}
                held_out = {"imagination/heldout_return_imagined": 0.75, "imagination/heldout_return_real": accept}
                accepted = np.nan if replies else accept
                writer.scalars({ACCEPT: accepted, "world_model/depth_3/wci": accepted}, step)
                if replies:
                    writer.scalars(told | held_out, step)
                writer.histogram("eval/entropy", values * (1 - step / 400), step)
                save_attention(attention(step, 0.5 + step / 1000), run_dir)

            evaluated(0, 0.3)
            for iteration in range(1, 9):
                writer.scalars({"imagination/return_bias": iteration / 10}, 25 * iteration)
            evaluated(200, 0.9)
        return read_run(run_dir)

    return make


def test_a_number_goes_on_from_the_warm_start(make_run):
    run = make_run()
    line = joined_line(run, ACCEPT)
    assert line is not None
    np.testing.assert_allclose(line.places, [0, 0.175, 0.35, 0.35, 1.0])
    np.testing.assert_allclose(line.values, [0.1, 0.2, 0.3, 0.3, 0.9])
    alone = joined_line(make_run(warm=False, name="alone"), ACCEPT)
    assert alone is not None
    np.testing.assert_allclose(alone.places, [0, 1])
    assert joined_line(run, "eval/exact") is None
    assert joined_line(make_run(warm=False, replies=True, name="world"), ACCEPT) is None  # never finite


def test_optimism_is_imagined_less_realized(make_run):
    bias = optimism_line(make_run())
    assert bias is not None
    np.testing.assert_allclose(bias.values, np.arange(1, 9) / 10)
    np.testing.assert_allclose(bias.places, 0.35 + 0.65 * np.arange(1, 9) / 8)
    held_out = optimism_line(make_run(warm=False, replies=True, name="world"))
    assert held_out is not None
    np.testing.assert_allclose(held_out.values, [0.45, -0.15])


def test_many_iterations_are_drawn_as_means_of_stretches(tmp_path):
    with MultiWriter(tmp_path, [JsonlWriter(tmp_path)]) as writer:
        for iteration in range(1, 49):
            writer.scalars({"imagination/return_bias": float(iteration)}, iteration)
    line = optimism_line(read_run(tmp_path))
    assert line is not None
    np.testing.assert_allclose(line.values, np.arange(1.5, 48, 2))  # 24 stretches of two


def test_a_line_of_attention_is_one_head(make_run):
    run = make_run()
    found = head_lines(run, "goal")
    assert found is not None
    name, line, floor = found
    # The second head has most at last, .7, and is followed back to where the first had more.
    assert name == "head 1.2"
    np.testing.assert_allclose(line.values, [0.1, 0.15, 0.2, 0.5, 0.7], rtol=1e-6)
    np.testing.assert_allclose(line.places, [0, 0.175, 0.35, 0.35, 1.0])
    np.testing.assert_allclose(floor.values, 0.125)
    assert head_lines(run, "reply") is None


def test_histograms_are_read_back_as_quantiles(make_run):
    run = make_run()
    np.testing.assert_allclose(run.spreads["eval/entropy"].steps, [0, 200])
    np.testing.assert_allclose(run.spreads["eval/entropy"].quantiles[0], [0.5, 0.6, 1.0, 1.4, 1.5])
    np.testing.assert_allclose(run.warm_start_spreads["eval/entropy"].quantiles[0, 2], 2.0)


def titles(figure):
    return [ax.get_title(loc="left") for part in figure.subfigs for ax in part.axes]


def test_the_figure_has_a_row_a_run(make_run):
    runs = {"answers": make_run(), "a world": make_run(warm=False, replies=True, name="world")}
    figure = evolution_figure(runs)
    assert figure is not None
    assert titles(figure) == [
        *("acceptance", "consistency", "optimism", "entropy", "attention: goal", "attention: sink"),
        *("replies accepted", "whole replies right", "optimism", "entropy"),
        *("attention: goal", "attention: sink"),
    ]
    drawn = figure.subfigs[0].axes[1].get_lines()
    np.testing.assert_allclose(drawn[1].get_ydata(), [0.05, 0.1, 0.15, 0.3, 0.9])


def test_the_axis_counts_what_the_run_counted(make_run):
    run = make_run()

    def labels():
        (axes,) = {tuple(label.get_text() for label in ax.get_xticklabels()) for ax in figure_of(run.run_dir)}
        return list(axes)

    def figure_of(run_dir):
        figure = evolution_figure({"": read_run(run_dir)})
        assert figure is not None
        return [ax for part in figure.subfigs for ax in part.axes]

    assert labels() == ["SFT\n100 steps", "RL\n200 tokens"]
    (run.run_dir / "config.yaml").write_text("post_training: {trainer: grpo}\n", encoding="utf-8")
    assert labels() == ["SFT\n100 steps", "GRPO\n200 steps"]
    (run.run_dir / "config.yaml").write_text("post_training: {trainer: null}\n", encoding="utf-8")
    assert labels() == ["SFT\n100 steps", "RL\n200 tokens"]


def test_a_run_that_was_evaluated_once_shows_no_evolution(tmp_path):
    with MultiWriter(tmp_path, [JsonlWriter(tmp_path)]) as writer:
        writer.histogram("eval/entropy", np.ones(3), 0)
    assert evolution_figure({"": read_run(tmp_path)}) is None
