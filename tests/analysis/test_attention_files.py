"""Attention on disk and in figures: what is read is what was written, and what cannot be read is named."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from worldmtp.analysis import attention_files
from worldmtp.analysis.artefacts import ArtefactError
from worldmtp.analysis.attention_figures import gallery, head_table, pattern_curves, training_places
from worldmtp.analysis.attention_files import (
    AttentionHistory,
    AttentionMaps,
    AttentionRecord,
    load_attention,
    load_history,
    save_attention,
)
from worldmtp.analysis.attention_patterns import (
    PATTERNS,
    AttendedTexts,
    PatternSums,
    pattern_sums,
    uniform_scores,
)
from worldmtp.analysis.joined_axis import JoinedAxis
from worldmtp.analysis.run_files import RunSteps

LETTERS = ("a", "b", "$", "\n")


@pytest.fixture
def texts():
    ids = np.array([[0, 1, 2, 1, 3], [1, 0, 0, 2, 3]])
    return AttendedTexts(
        input_ids=ids,
        attention_mask=np.array([[True] * 5, [True] * 4 + [False]]),
        prompt_length=np.array([3, 2]),
        reply_mask=np.zeros((2, 5), dtype=bool),
        queries=np.array([[2, 3], [1, 2]]),
        query_mask=np.ones((2, 2), dtype=bool),
    )


@pytest.fixture
def make_record(texts):
    def make(step, seed=0, num_rows=2):
        attention = np.random.default_rng(seed).random((2, 2, 3, 2, 5)) * texts.visible()[:, None, None]
        attention /= attention.sum(axis=-1, keepdims=True)
        maps = AttentionMaps.of(attention, texts, LETTERS, num_rows)
        return AttentionRecord(step, pattern_sums(attention, texts), uniform_scores(texts), maps), attention

    return make


def test_what_is_read_is_what_was_written(make_record, tmp_path):
    record, attention = make_record(120)
    path = save_attention(record, tmp_path)
    assert path == tmp_path / "attention" / "step_000000000120.npz"
    found = load_attention(path)
    assert found.step == 120
    np.testing.assert_allclose(found.sums.mean(), record.sums.mean(), rtol=1e-6)
    np.testing.assert_array_equal(found.floor, record.floor)
    np.testing.assert_allclose(found.gallery.maps, attention, rtol=0, atol=5e-4)  # half precision
    assert found.gallery.tokens.tolist() == [["a", "b", "$", "b", "\n"], ["b", "a", "a", "$", "\n"]]
    assert found.gallery.lengths.tolist() == [5, 4]


def test_a_file_holds_no_more_maps_than_it_has_room_for(texts, make_record, monkeypatch):
    attention = make_record(0)[1]
    of_one_text = 2 * 3 * 2 * 5
    for room, kept in ((of_one_text - 1, 0), (of_one_text, 1), (2 * of_one_text, 2), (9 * of_one_text, 2)):
        monkeypatch.setattr(attention_files, "MAX_MAP_NUMBERS", room)
        assert len(AttentionMaps.of(attention, texts, LETTERS, 8)) == kept
    assert len(AttentionMaps.of(attention, texts, LETTERS, 1)) == 1


def test_history_is_in_the_order_of_training_and_names_what_cannot_be_read(make_record, tmp_path):
    for step in (1_000, 20):
        save_attention(make_record(step)[0], tmp_path)
    save_attention(make_record(7)[0], tmp_path / "sft")
    problems: list[str] = []
    history = load_history(tmp_path, "sft", problems)
    assert [record.step for record in history.records] == [7, 20, 1_000]
    assert problems == []
    damaged = tmp_path / "attention" / "step_000000000020.npz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert [record.step for record in load_history(tmp_path, "sft", problems).run] == [1_000]
    assert len(problems) == 1
    assert "step_000000000020.npz cannot be read" in problems[0]


def test_file_of_another_version_or_name_is_refused(make_record, tmp_path, monkeypatch):
    record = make_record(1)[0]
    with monkeypatch.context() as patch:
        patch.setattr(attention_files, "FORMAT_VERSION", 2)
        path = save_attention(record, tmp_path)
    with pytest.raises(ArtefactError, match="another version"):
        load_attention(path)
    other = path.rename(path.with_name("first.npz"))
    with pytest.raises(ArtefactError, match=r"not named step_<number>\.npz"):
        load_attention(other)


def test_strongest_head_by_hand(make_record):
    record = make_record(0)[0]
    total = np.zeros((len(PATTERNS), 1, 2, 3))
    total[PATTERNS.index("sink"), 0, 1, 0] = 1.0
    total[PATTERNS.index("entropy"), 0] = 2.0
    total[PATTERNS.index("entropy"), 0, 0, 2] = 0.5
    count = np.ones((len(PATTERNS), 1), dtype=np.int64)
    count[PATTERNS.index("reply")] = 0
    found = AttentionRecord(0, PatternSums(total, count), record.floor, record.gallery)
    assert found.strongest("sink") == (1, 0)
    assert found.strongest("entropy") == (0, 2)
    assert found.strongest("reply") is None


def test_warm_start_has_the_left_of_the_axis():
    # .35 of it: steps 0, 50 and 100 of the warm start, then 0 and 200 tokens of the run.
    axis = JoinedAxis(100.0, 200.0)
    np.testing.assert_allclose(axis.of_warm_start([0, 50, 100]), [0, 0.175, 0.35])
    np.testing.assert_allclose(axis.of_run([0, 200]), [0.35, 1.0])
    np.testing.assert_allclose(JoinedAxis(0.0, 200.0).of_run([0, 50, 200]), [0, 0.25, 1.0])


def test_curves_show_each_pattern_that_texts_have(make_record):
    first, last = make_record(10, seed=1)[0], make_record(300, seed=2)[0]
    history = AttentionHistory((first,), (make_record(0)[0], last))
    figure = pattern_curves(history, RunSteps())
    assert figure is not None
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(titles) == len(PATTERNS) - 1  # nothing has replied
    assert "replies" not in titles
    lines = figure.axes[0].get_lines()
    heads = [line for line in lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    np.testing.assert_allclose(heads[0].get_xdata(), training_places(history))
    np.testing.assert_allclose(heads[5].get_ydata()[-1], last.sums.mean()[0, 1, 2])
    # The warm start ends at optimiser step 10, the run at token 300.
    assert x_labels(figure.axes[0]) == ["SFT\n10 steps", "RL\n300 tokens"]
    assert pattern_curves(AttentionHistory(run=(first,)), RunSteps()) is None


def x_labels(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


@pytest.mark.parametrize(
    ("ends", "steps", "labels"),
    [
        ((0.0, 950.0), RunSteps(), ["RL\n950 tokens"]),
        ((160.0, 25_600.0), RunSteps(), ["SFT\n160 steps", "RL\n25.6k tokens"]),
        ((1000.0, 1_234_567.0), RunSteps("GRPO", "steps"), ["SFT\n1k steps", "GRPO\n1.23M steps"]),
        ((160.0, 300.0), None, ["SFT\n160 steps", "each run to\nits own end"]),
    ],
)
def test_the_axis_says_what_its_steps_are(ends, steps, labels):
    ax = Figure().subplots()
    JoinedAxis(*ends).mark(ax, steps)
    assert x_labels(ax) == labels


def test_gallery_shows_the_strongest_heads_before_and_after(make_record):
    history = AttentionHistory(run=(make_record(0)[0], make_record(50, seed=3)[0]))
    figure = gallery(history)
    assert figure is not None
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    layer, head = history.run[1].strongest("sink")
    assert any(title.startswith(f"at last: {layer + 1}.{head + 1}\nsink") for title in titles)
    assert len([title for title in titles if title.startswith("before RL")]) * 2 == len(titles)
    figure.savefig(io.BytesIO(), format="png")  # dollars and line ends among the tokens are drawn as they are


def test_without_maps_there_is_no_gallery(make_record):
    assert gallery(AttentionHistory(run=(make_record(0, num_rows=0)[0],))) is None
    assert gallery(AttentionHistory()) is None


def test_table_has_a_square_for_each_head(make_record):
    record = make_record(0)[0]
    image = head_table(record).axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(image, record.sums.mean()[0])
