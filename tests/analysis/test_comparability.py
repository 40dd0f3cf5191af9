"""What two runs can be compared in, as their configs say: one task or two, one seed or two, the same heads or not."""

import numpy as np
import pytest
import yaml

from worldmtp.analysis import save_artefact
from worldmtp.analysis.attention_files import AttentionMaps, AttentionRecord, save_attention
from worldmtp.analysis.attention_patterns import AttendedTexts, pattern_sums, uniform_attention, uniform_scores
from worldmtp.analysis.comparability import comparable
from worldmtp.analysis.comparison import compare_runs

CONFIG = {
    "seed": 0,
    "env": {"id": "worldmtp/SpellBackward-v0", "kwargs": {}, "wrappers": []},
    "model": {"architecture": "llama", "path": None, "config": {"hidden_size": 64}, "head": "sequential"},
    "sft": {"num_steps": 160, "load": None},
}


def config(**changes):
    """CONFIG as YAML, with some of its values changed by their dotted keys, ``__`` for a dot."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    for key, value in changes.items():
        *way, last = key.split("__")
        place = values
        for part in way:
            place = place[part]
        place[last] = value
    return yaml.safe_dump(values, sort_keys=False)


def test_one_task_and_one_seed_are_paired_by_prompts():
    found = comparable(config(), config(sft__num_steps=200, model__head="parallel"))
    assert (
        found.other_heads is None
    )  # heads are drawn after the trunk, and a warm start moves the weights it begins with
    (note,) = found.notes
    assert note.startswith("The runs have one seed, 0: they answered the same prompts and are paired by them.")
    assert "worldmtp analyze SWEEP_A SWEEP_B" in note


def test_seeds_that_differ_are_no_pair():
    found = comparable(config(), config(seed=1))
    (note,) = found.notes
    assert note.startswith("The runs have different seeds, 0 and 1, which draw different prompts, demonstrations and ")
    assert "the runs are not, so a difference may be one of the seeds" in note
    assert found.other_heads == "seed differs"


def test_two_tasks_are_told_from_one():
    task, seed = comparable(config(), config(env__id="worldmtp/ReverseWords-v0")).notes
    assert task.startswith(
        "The runs are of different tasks, worldmtp/SpellBackward-v0 and worldmtp/ReverseWords-v0. Prompts of the same "
        "text are paired, though the tasks may ask and pay for different things"
    )
    assert seed.startswith(
        "The runs have one seed, 0: the prompts that both answered are paired, of which a task that is"
    )
    assert "they answered the same prompts" not in seed


def test_one_task_with_other_settings_says_which():
    found = comparable(config(), config(env__kwargs={"max_new": 9}))
    assert found.notes[0].startswith(
        "The runs have one task, worldmtp/SpellBackward-v0, with other settings (env.kwargs.max_new): where these "
    )
    assert "the prompts that both answered are paired" in found.notes[1], "what a task asks may depend on its settings"
    assert found.other_heads == "env.kwargs.max_new differs"
    wrapped = comparable(config(), config(env__kwargs={"max_new": 9}, env__wrappers=["normalize_reward"]))
    assert "(env.wrappers, env.kwargs.max_new)" in wrapped.notes[0]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        # A trunk from a file is the same whatever the seed is.
        ({"model__path": "lm", "model__architecture": None}, {"model__path": "lm", "seed": 1}, None),
        ({"model__path": "lm"}, {"model__path": "other"}, "model.path is lm in the first and other in the second"),
        ({"model__path": "lm"}, {}, "model.path is lm in the first and not set in the second"),
        # What is loaded after a warm start replaces the trunk, whatever that was.
        ({"sft__load": "a/sft/model"}, {"sft__load": "a/sft/model", "seed": 1, "model__path": "lm"}, None),
        ({"sft__load": "a"}, {"sft__load": "b"}, "sft.load is a in the first and b in the second"),
        ({}, {"seed": 1, "model__config": {"hidden_size": 32}}, "seed, model.config.hidden_size differ"),
    ],
)
def test_heads_answer_to_their_numbers_where_trunks_began_alike(first, second, why):
    assert comparable(config(**first), config(**second)).other_heads == why


@pytest.mark.parametrize("lost", [None, "a: [", ""])
def test_nothing_is_claimed_of_a_run_without_its_config(lost):
    for pair in ((lost, config()), (config(), lost)):
        found = comparable(*pair)
        assert found.notes == (
            "A config is missing or damaged, so it is not known whether the runs have one task and one seed.",
        )
        assert found.other_heads == "a config is missing or damaged"


def saved(directory, artefact, text, with_attention=True):
    save_artefact(artefact, directory / "artefacts", "final")
    (directory / "config.yaml").write_text(text)
    if with_attention:
        batch = len(artefact)
        texts = AttendedTexts(
            input_ids=artefact.input_ids,
            attention_mask=artefact.attention_mask,
            prompt_length=artefact.prompt_length,
            reply_mask=np.zeros(artefact.input_ids.shape, dtype=bool),
            queries=np.tile([0, 1, 2], (batch, 1)),
            query_mask=np.ones((batch, 3), dtype=bool),
        )
        attention = np.tile(uniform_attention(texts), (1, 1, 2, 1, 1))
        maps = AttentionMaps.of(attention, texts, artefact.tokens_text, 1)
        save_attention(AttentionRecord(0, pattern_sums(attention, texts), uniform_scores(texts), maps), directory)
    return directory


@pytest.fixture
def answers(make_artefact, transition):
    return make_artefact([transition, None]).select(np.arange(20))


def test_a_page_of_two_seeds_says_so_and_sets_no_head_against_its_number(answers, tmp_path):
    first, same = (saved(tmp_path / name, answers, config()) for name in ("first", "same"))
    other = saved(tmp_path / "other", answers.select(np.arange(8)), config(seed=1))
    alike = compare_runs(first, same)
    page = alike.page.read_text(encoding="utf-8")
    assert "Framed are heads" in page
    assert "No head is set against the head of its number" not in page
    found = compare_runs(first, other)
    page = found.page.read_text(encoding="utf-8")
    assert "Framed are heads" not in page
    assert "unless both trunks began with the same weights: seed differs." in page
    assert "on the 8 held-out prompts that both answered, of 20 and 8." in page
    assert f"<li>{found.notes[0]}</li>" in page
    assert "note: The runs have different seeds, 0 and 1" in str(found)
    assert "note: The runs have one seed, 0" in str(alike)


def test_runs_without_a_prompt_in_common_are_told_why(answers, make_artefact, transition, tmp_path):
    others = make_artefact([transition, None], tokens_text=("x", "y"))
    first = saved(tmp_path / "first", answers, config(), with_attention=False)
    for changes, why in (
        (
            {"env__id": "worldmtp/ReverseWords-v0"},
            r"of different tasks, env\.id=worldmtp/SpellBackward-v0 and worldmtp/ReverseWords-v0, so that no answer",
        ),
        (
            {"seed": 7},
            r"they have different seeds, 0 and 7, which draw different held-out prompts; compare runs of one",
        ),
        ({}, r"compare runs of one task with the same seed and eval\.num_prompts"),
    ):
        second = saved(tmp_path / "second", others, config(**changes), with_attention=False)
        with pytest.raises(ValueError, match=rf"have 0 held-out prompts in common; .*{why}"):
            compare_runs(first, second)
