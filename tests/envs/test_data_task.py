"""Questions from files: every format gives the same examples, and what is wrong with a file is told with its place."""

import csv
import json
import pickle

import gymnasium
import numpy as np
import pytest

from worldmtp.envs import Example, Score, draw_examples, make_task, split_of
from worldmtp.envs.tasks.data import DataTask

NO_IDS = np.zeros(0, dtype=np.int64)
ROWS = [
    {"prompt": "2+3=", "answer": "5", "level": "easy"},
    {"prompt": "capital of France, please:", "answer": 'Paris, or "Paname"', "level": "hard"},
    {"prompt": "new\nline=", "answer": "yes", "level": "hard"},
]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows=ROWS):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows=ROWS):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_saved(path, rows=ROWS):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(path))


FORMATS = {"a.jsonl": write_jsonl, "a.csv": write_csv, "a.parquet": write_parquet, "saved": write_saved}


def all_examples(task):
    rng = np.random.default_rng(0)
    return {example.prompt: example for example in (task.sample(rng, "train") for _ in range(200))}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_examples(tmp_path, name):
    FORMATS[name](tmp_path / name)
    task = DataTask(tmp_path / name)
    expected = {row["prompt"]: Example(row["prompt"], row["answer"], {"level": row["level"]}) for row in ROWS}
    assert all_examples(task) == expected
    assert task.universe_size == 3


def test_columns_are_named_and_a_separator_appended(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"question": "2+3", "gold": "5", "prompt": "other"}])
    task = DataTask(tmp_path / "a.jsonl", prompt="question", answer="gold", separator="=")
    assert all_examples(task) == {"2+3=": Example("2+3=", "5", {"prompt": "other"})}


def test_without_a_reward_a_text_is_right_or_wrong(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "2+3=", "answer": " 5\n"}])
    task = DataTask(tmp_path / "a.jsonl")
    (example,) = all_examples(task).values()
    assert task.score(example, "5", NO_IDS) == Score(1.0, exact=True)
    assert task.score(example, "5 5", NO_IDS) == Score(0.0)


def test_a_reward_by_its_path_sees_the_example_and_the_text(tmp_path, my_rewards):
    write_jsonl(tmp_path / "a.jsonl")
    task = DataTask(tmp_path / "a.jsonl", f"{my_rewards}:length", probe_bound=0.5)
    example = all_examples(task)["new\nline="]
    assert task.score(example, "y", NO_IDS) == Score(1 / 3)
    assert task.score(example, "123", NO_IDS) == Score(1.0, exact=True)
    assert task.probe_bound == 0.5
    judged = DataTask(tmp_path / "a.jsonl", f"{my_rewards}:by_level").score(example, "y", NO_IDS)
    assert (judged.value, judged.components, judged.reason) == (0.5, {"hard": 1.0}, "judged")


def test_answers_may_be_missing_where_there_is_a_reward(tmp_path, my_rewards):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a="}, {"prompt": "b=", "answer": None}])
    task = DataTask(tmp_path / "a.jsonl", f"{my_rewards}:by_level", answer=None)
    assert {example.answer for example in all_examples(task).values()} == {None}
    assert DataTask(tmp_path / "a.jsonl", f"{my_rewards}:by_level").universe_size == 2


def test_parts_of_a_saved_dictionary_are_chosen(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(str(tmp_path / "saved"))
    assert DataTask(tmp_path / "saved", part="test").universe_size == 1
    for part in (None, "validation"):
        with pytest.raises(ValueError, match=r"holds the parts \['test', 'train'\]; choose one"):
            DataTask(tmp_path / "saved", part=part)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one data set of two subsets, and nothing in the current directory; what it was asked for."""
    import datasets

    monkeypatch.chdir(tmp_path)
    asked = []

    def load_dataset(path, name=None):
        asked.append((path, name, datasets.is_progress_bar_enabled()))
        if path != "someone/questions":
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub")
        rows = {None: ROWS, "small": ROWS[:1]}[name]
        return datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(ROWS[:2]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_data_set_on_the_hub_is_named(hub, tmp_path):
    import datasets

    shown = datasets.is_progress_bar_enabled()
    assert DataTask("someone/questions", part="train").universe_size == 3
    assert DataTask("someone/questions", part="train", subset="small").universe_size == 1
    assert hub == [("someone/questions", None, False), ("someone/questions", "small", False)]
    assert datasets.is_progress_bar_enabled() == shown
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"'someone/questions' holds the parts \['test', 'train'\]; choose one"):
        DataTask("someone/questions")


def test_the_disk_comes_before_the_hub(hub, tmp_path):
    (tmp_path / "someone").mkdir()
    write_saved(tmp_path / "someone" / "questions", ROWS[:1])
    assert DataTask("someone/questions").universe_size == 1
    with pytest.raises(ValueError, match="subset='main' chooses in a data set on the Hub, and 'someone/questions' is"):
        DataTask("someone/questions", subset="main")
    with pytest.raises(FileNotFoundError, match=r"'someone/other\.jsonl': no such file or directory"):
        DataTask("someone/other.jsonl")
    assert hub == []


def test_a_hub_that_cannot_be_reached_is_told(hub):
    message = (
        r"path='someone/other' is no file or directory here .*the Hub cannot be loaded: Couldn't reach 'someone/other' "
        r"on the Hub\. Check the name .*with save_to_disk, and give that directory"
    )
    with pytest.raises(ValueError, match=message):
        DataTask("someone/other")
    assert [path for path, *_ in hub] == ["someone/other"]


def test_the_real_hub_offline(tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot be loaded: Couldn't reach 'no-one/of-this-name' on the Hub"):
        DataTask("no-one/of-this-name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.txt", "x", {}, r"ends in '\.txt'; expected one of \('\.jsonl', '\.csv', '\.parquet'\)"),
        ("a.jsonl", "", {}, "has no rows"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt"', {}, r"line 2: Expecting .* each line must be"),
        ("a.jsonl", '["a", "b"]', {}, "line 1: a JSON list; each line must be an object"),
        ("a.jsonl", '{"promt": "a", "answer": "b"}', {}, r"has no column 'prompt' \(prompt=\)\. Its"),
        (
            "a.jsonl",
            '{"prompt": "a", "x": "b"}',
            {},
            r"no column 'answer' \(answer=\)\. Its .*task_kwargs\.answer=x .*or, without answers, answer=None .*reward",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "answer": "b"}\n{"promt": "a", "answer": "b"}',
            {},
            r"row 2 has no 'prompt'; did you mean 'promt'\? Its columns: \['promt', 'answer'\]",
        ),
        ("a.jsonl", '{"prompt": "", "answer": "b"}', {}, "row 1: prompt is empty"),
        (
            "a.jsonl",
            '{"prompt": "a", "answer": null}',
            {},
            "row 1: answer is None of type NoneType; expected text or a",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "answer": true}',
            {},
            "row 1: answer is True of type bool; expected text or a num",
        ),
        ("a.jsonl", '{"prompt": "a", "answer": NaN}', {}, "row 1: answer is nan of type float"),
        ("a.jsonl", '{"prompt": "a", "answer": ["b"]}', {}, r"row 1: answer is \['b'\] of type list"),
        ("a.jsonl", '{"prompt": {"a": 1}, "answer": "b"}', {}, r"row 1: prompt is \{'a': 1\} of type dict"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}', {"part": "train"}, "is a file; leave it out"),
        ("a.jsonl", '{"prompt": "a", "answer": "b"}', {"answer": None}, "nothing to match; give a reward"),
        ("a.csv", "prompt,answer\na,b\na,b,c\n", {}, r"line 3: not the 2 fields of the header \['prompt', 'answer'\]"),
        ("a.csv", 'prompt,answer\na,"b\n', {}, "unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path, name, content, arguments, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        DataTask(tmp_path / name, **arguments)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path='.*none\.jsonl': no such file or directory \(from "):
        DataTask(tmp_path / "none.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a directory that datasets did not save"):
        DataTask(tmp_path / "folder")
    with pytest.raises(ValueError, match="a task from data needs a file"):
        make_task("Data")


def test_a_small_file_fills_its_splits_and_no_more(tmp_path):
    """Of 400 prompts each can be had, the last one too; of more there are none, and the error says so."""
    prompts = [f"{number}=" for number in range(400)]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "1"} for prompt in prompts])
    task = DataTask(tmp_path / "a.jsonl")
    heldout = {prompt for prompt in prompts if split_of(Example(prompt).key) == "heldout"}
    drawn = draw_examples(task, "heldout", len(heldout), seed=0, distinct=True)
    assert {example.prompt for example in drawn} == heldout
    message = rf"no new prompt in 8000 draws \({len(heldout)} distinct found.*too small, it has 400 in all; ask for"
    with pytest.raises(ValueError, match=message):
        draw_examples(task, "heldout", len(heldout) + 1, seed=0, distinct=True)


def test_an_env_of_a_file_scores_by_its_reward(tmp_path, my_rewards):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{number}=", "answer": "12"} for number in range(20)])
    task_kwargs = {"path": str(tmp_path / "a.jsonl"), "reward": f"{my_rewards}:length"}
    env = gymnasium.make("worldmtp/Data-v0", task_kwargs=task_kwargs, tokenizer="char:0123456789=", max_new=3).unwrapped
    assert json.loads(json.dumps(env.spec.kwargs))["task_kwargs"] == task_kwargs
    env.reset(seed=0)
    env.step(2)
    _, reward, terminated, _, info = env.step(env.tokenizer.eos_id)
    assert (reward, terminated, info["score"], info["text"]) == (0.5, True, 0.5, "0")


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b'{"prompt": "1+1=", "answer": "2"}\r\n'), ("a.csv", b"prompt,answer\r\n1+1=,2\r\n")],
)
@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path, name, content, mark):
    (tmp_path / name).write_bytes(mark + content)
    (example,) = all_examples(DataTask(tmp_path / name)).values()
    assert (example.prompt, example.answer, dict(example.meta)) == ("1+1=", "2", {})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_in_another_encoding_is_named(tmp_path, name):
    (tmp_path / name).write_bytes('{"prompt": "a", "answer": "b"}'.encode("utf-16"))
    with pytest.raises(ValueError, match=rf"'.*{name}' is not UTF-8: .*; save it as UTF-8"):
        DataTask(tmp_path / name)


def test_numbers_are_taken_as_they_are_written(tmp_path):
    """As a CSV file, which has texts only, says them."""
    numbers = ["4", "-3", "4.50", "4.0", "1e5", "12345678901234567890", "-0.0"]
    lines = [f'{{"prompt": {index}, "answer": {number}, "odds": 0.5}}' for index, number in enumerate(numbers)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.csv").write_text("prompt,answer,odds\n" + "".join(f"{i},{n},0.5\n" for i, n in enumerate(numbers)))
    found, expected = all_examples(DataTask(tmp_path / "a.jsonl")), all_examples(DataTask(tmp_path / "a.csv"))
    answers = {prompt: example.answer for prompt, example in found.items()}
    assert answers == dict(zip("0123456", numbers, strict=True))
    assert answers == {prompt: example.answer for prompt, example in expected.items()}
    task = DataTask(tmp_path / "a.jsonl")
    assert task.score(found["2"], "4.50", NO_IDS).exact
    assert not task.score(found["2"], "4.5", NO_IDS).exact
    assert found["2"].meta["odds"] + 0.5 == 1.0  # other columns are numbers still, also where they have travelled
    assert pickle.loads(pickle.dumps(found["2"])).meta == {"odds": 0.5}


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_numbers_of_tables_are_texts_too(tmp_path, name):
    FORMATS[name](tmp_path / name, [{"prompt": 7, "answer": 4}, {"prompt": 8, "answer": -12}])
    examples = all_examples(DataTask(tmp_path / name))
    assert {prompt: example.answer for prompt, example in examples.items()} == {"7": "4", "8": "-12"}
    FORMATS[name](tmp_path / f"float-{name}", [{"prompt": "a", "answer": 2.5}, {"prompt": "b", "answer": 4.0}])
    examples = all_examples(DataTask(tmp_path / f"float-{name}"))
    assert {prompt: example.answer for prompt, example in examples.items()} == {"a": "2.5", "b": "4.0"}


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
@pytest.mark.parametrize(
    ("answer", "told"),
    [(True, "True of type bool"), (None, "None of type NoneType"), (["b"], r"\['b'\] of type list")],
)
def test_what_a_table_holds_besides_is_refused_with_its_row(tmp_path, name, answer, told):
    FORMATS[name](tmp_path / name, [{"prompt": "a", "answer": answer}])
    with pytest.raises(ValueError, match=f"row 1: answer is {told}; expected text or a number"):
        DataTask(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "num_questions"),
    [
        ([{"level": "easy"}, {"level": "easy"}], 1),
        ([{"level": "easy"}, {"level": "hard"}], 2),  # by_level pays by it
        ([{"level": "easy"}, {"level": "easy", "answer": "c"}], 2),
    ],
    ids=["twice the same", "other columns", "other answers"],
)
def test_a_prompt_of_several_questions_is_not_looked_up(tmp_path, my_rewards, rows, num_questions):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a=", "answer": "b"} | row for row in rows])
    env = gymnasium.make(
        "worldmtp/Data-v0",
        task_kwargs={"path": str(tmp_path / "a.jsonl"), "reward": f"{my_rewards}:by_level"},
        tokenizer="char",
        max_prompt=8,
        max_new=8,
        pool_size=16,  # both are in it but once in 2**15
        heldout_fraction=0.0,
    ).unwrapped
    options = {"prompts": ["a="]}
    if num_questions == 1:
        assert env.reset(options=options)[1]["prompt_text"] == "a="
        return
    with pytest.raises(ValueError, match=r"the prompt 'a=' is that of 2 questions of the pool of 'train'"):
        env.reset(options=options)


def test_all_wrong_columns_are_told_at_once_with_a_line_that_mends_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,Answers,question\n1,b,a\n")
    with pytest.raises(ValueError, match="has no column") as caught:
        DataTask(path, answer="answers")
    # The nearest in spelling for the one, and the first that nobody has named for the other.
    assert str(caught.value) == (
        f"{str(path)!r} has no column 'prompt' (prompt=) and no column 'answers' (answer=). Its columns: ['id', "
        "'Answers', 'question']; name the right one, as by ++env.kwargs.task_kwargs.prompt=id "
        "++env.kwargs.task_kwargs.answer=Answers (worldmtp train), --kwargs task_kwargs.prompt=id "
        "task_kwargs.answer=Answers (worldmtp envs, eval); or, without answers, answer=None (null on the command line) "
        "and a reward."
    )
    assert DataTask(path, prompt="question", answer="Answers").sample(np.random.default_rng(0), "train").answer == "b"
