"""Windows of real files: what follows is the answer, and no character is shared between the splits."""

import subprocess
import sys

import numpy as np
import pytest

from worldmtp.envs import Example, Score, draw_examples, hack_probes, split_of
from worldmtp.envs.tasks.corpus import CorpusTask, Side

NO_IDS = np.zeros(0, dtype=np.int64)


@pytest.fixture
def texts(tmp_path):
    """Twenty files of random letters, so that windows of two files are never equal, and a copy of the first."""
    rng = np.random.default_rng(0)
    contents = ["".join("abcdefgh"[index] for index in rng.integers(8, size=200)) for _ in range(20)]
    for number, content in enumerate([*contents, contents[0]]):
        (tmp_path / f"{number:02}.txt").write_text(content)
    (tmp_path / "short.txt").write_text("abc")
    return tmp_path


def test_an_example_is_a_place_in_a_file(texts):
    task = CorpusTask(str(texts / "*.txt"), prompt_chars=10, answer_chars=4)
    for example in draw_examples(task, "train", 50, seed=0):
        with open(example.meta["file"]) as file:
            file.seek(example.meta["start"])
            assert file.read(14) == example.prompt + example.answer
        assert len(example.answer) == 4


def test_every_place_of_every_file_is_as_likely(tmp_path):
    """Files with 3 and 5 places, drawn 4000 times: 500 times each, +- 5 * sqrt(500 * 7 / 8).

    Eight places at 5 sigma fail by chance once in 200,000 times.
    """
    contents = ["abcde", "fghijkl"]
    files = []
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_text(content)
        files.append((f"{number}.txt", tmp_path / f"{number}.txt"))
    side = Side(["0.txt", "1.txt"], contents, np.cumsum([3, 5]))
    assert side.num_windows == 8
    assert [side.place(window) for window in range(8)] == [(0, 0), (0, 1), (0, 2), *((1, start) for start in range(5))]
    task = CorpusTask([str(path) for _, path in files], prompt_chars=2, answer_chars=1)
    task._sides = {"train": side}
    rng = np.random.default_rng(0)
    drawn = [task.sample(rng, "train").prompt for _ in range(4000)]
    counts = {prompt: drawn.count(prompt) for prompt in ("ab", "bc", "cd", "fg", "gh", "hi", "ij", "jk")}
    assert sum(counts.values()) == 4000
    assert all(abs(count - 500) < 5 * (500 * 7 / 8) ** 0.5 for count in counts.values())


def test_a_split_without_a_file_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("abcde")
    (tmp_path / "b.txt").write_text("ab")
    with pytest.raises(
        ValueError, match=r"1 of 2 files have 3 characters or more, and .* leaves none in '(train|heldout)': give more"
    ):
        CorpusTask(str(tmp_path / "*.txt"), 2, 1).sample(np.random.default_rng(0), "train")


@pytest.mark.parametrize("number", range(4))
def test_two_files_are_enough_one_a_split(tmp_path, number):
    """By their hashes both would be on one side of .2 in .68 of all pairs, in none of four once in 100 times."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}{number}" * 9)
    task, rng = CorpusTask(str(tmp_path / "*.txt"), 2, 1), np.random.default_rng(0)
    read = [{task.sample(rng, split).meta["file"] for _ in range(20)} for split in ("train", "heldout")]
    assert list(map(len, read)) == [1, 1]
    assert len(set.union(*read)) == 2


def test_splits_share_no_file_no_copy_of_one_and_no_prompt(texts):
    task = CorpusTask(str(texts / "*.txt"), prompt_chars=10, answer_chars=4)
    drawn = {split: draw_examples(task, split, 400, seed=0) for split in ("train", "heldout")}
    places = {
        split: [(example.meta["file"][-6:], example.meta["start"]) for example in drawn[split]] for split in drawn
    }
    files = {split: {"00.txt" if name == "20.txt" else name for name, _ in places[split]} for split in places}
    assert not files["train"] & files["heldout"]
    assert len(files["train"] | files["heldout"]) == 20
    grams = {
        split: {text[i : i + 8] for e in drawn[split] for text in [e.prompt + e.answer] for i in range(7)}
        for split in drawn
    }
    assert not grams["train"] & grams["heldout"]  # not even parts of windows; 8 random letters meet once in 16 million
    for split, examples in drawn.items():  # and the hash of the prompt agrees, as for every task
        assert {split_of(example.key) for example in examples} == {split}


def test_the_hash_of_the_prompt_alone_would_leak(texts):
    """The planted fault: windows of all files, split by the hash of the prompt only, overlap between the splits."""
    task = CorpusTask(str(texts / "*.txt"), prompt_chars=10, answer_chars=4)
    rng = np.random.default_rng(0)
    windows = [task.sample(rng, "train") for _ in range(2000)]
    grams = {
        split: {e.prompt[i : i + 8] for e in windows if split_of(e.key) == split for i in range(3)}
        for split in ("train", "heldout")
    }
    assert len(grams["train"] & grams["heldout"]) > len(grams["heldout"]) / 2


def test_a_line_of_two_files_is_a_prompt_of_one_split(tmp_path):
    for number in range(20):  # the licence of all of them, then something of their own
        (tmp_path / f"{number}.txt").write_text("LICENCE" + chr(ord("a") + number) * 9)
    task = CorpusTask(str(tmp_path / "*.txt"), prompt_chars=6, answer_chars=1)
    shared = "LICENC"
    sides = {
        split: {example.prompt for example in draw_examples(task, split, 300, seed=0)} for split in ("train", "heldout")
    }
    assert (shared in sides["train"]) + (shared in sides["heldout"]) == 1
    assert not sides["train"] & sides["heldout"]


def test_windows_stay_in_the_alphabet_and_answers_have_no_blank_at_their_ends(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"ab cd\tef gh {number} ij \n kl é mn " * 5)
    task = CorpusTask(str(tmp_path / "*.txt"), prompt_chars=4, answer_chars=3, alphabet="abcdefghijklmn \n")
    rng = np.random.default_rng(0)
    for _ in range(300):
        example = task.sample(rng, "train")
        assert set(example.prompt + example.answer) <= set("abcdefghijklmn \n")
        assert example.answer == example.answer.strip()
    with pytest.raises(ValueError, match="10000 windows of 7 characters of 12 files had a character outside"):
        CorpusTask(str(tmp_path / "*.txt"), 4, 3, alphabet="xyz").sample(rng, "train")


def half(example, text):
    return 0.5


def test_scores(texts):
    example = Example("abcd", "efgh")
    task = CorpusTask(str(texts / "*.txt"))
    assert task.score(example, "efgh", NO_IDS) == Score(1.0, {"position_match": 1.0}, exact=True)
    assert (task.score(example, "exgx", NO_IDS).value, task.score(example, "efghij", NO_IDS).value) == (0.5, 4 / 6)
    assert CorpusTask(str(texts / "*.txt"), reward=half).score(example, "x", NO_IDS) == Score(0.5)


def test_the_standard_library_is_a_corpus():
    task = CorpusTask(alphabet="".join(map(chr, range(32, 127))) + "\n")
    examples = draw_examples(task, "train", 60, seed=0, distinct=True)
    for probe in hack_probes():
        values = [task.score(example, probe.strip(), NO_IDS).value for example in examples]
        assert np.mean(values) <= task.probe_bound
    assert all(example.meta["file"].endswith(".py") for example in examples)
    assert not any(task.score(e, probe, NO_IDS).exact for e in examples for probe in hack_probes(e.answer))


def test_no_torch_is_imported():
    code = (
        "import sys, numpy; from worldmtp.envs.tasks.corpus import CorpusTask; "
        "CorpusTask().sample(numpy.random.default_rng(0), 'train'); "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'reasoning_gym'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: CorpusTask(prompt_chars=0), "got 0, 8 and 0.2"),
        (
            lambda folder: CorpusTask(str(folder / "*.md")),
            r"files='.*\*\.md' names no file \(from .*\); or say 'stdlib'",
        ),
        (lambda folder: CorpusTask(str(folder / "*.txt")).sample(np.random.default_rng(0), "test"), "split='test'"),
        (lambda folder: CorpusTask(str(folder / "*.bin")).sample(np.random.default_rng(0), "train"), "is not UTF-8"),
    ],
)
def test_what_is_wrong_is_told(texts, make, message):
    (texts / "a.bin").write_bytes(b"\xff\xfe" * 50)
    with pytest.raises(ValueError, match=message):
        make(texts)
