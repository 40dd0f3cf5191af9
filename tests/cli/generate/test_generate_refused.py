"""What ``worldmtp generate`` refuses, with the message that says what to do."""

import re
import subprocess
import sys

import pytest

from worldmtp.envs import CharTokenizer
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

NEW = "12"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--draft", "mpt", "a"],
            r"--draft='mpt' is unknown; did you mean 'mtp'\? choose from \['none', 'mtp', 'tree'",
        ),
        (["aB=é"], r"prompt 1, 'aB=é', has 'B', 'é', unknown to the model's tokenizer, which knows '=abcd'; write it"),
        (["a", ""], r"prompt 2 is empty; the model needs at least one token"),
        (["a" * 128], r"a prompt has 128 tokens and the model a context of 128, .*; shorten the prompt"),
        (["a", "--max-new-tokens", "128"], r"a prompt of 1 tokens and max_new_tokens=128 exceed .* context of 128"),
        (["a", "--max-new-tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["a", "--num-draft", "4"], "num_draft=4, but heads of depth=4 draft 1 to 3 tokens"),
        (["a", "--tree", "2,2,2,2"], "num_draft=4, but heads of depth=4 draft 1 to 3 tokens"),
        (["a", "--tree", "2", "--draft", "mtp"], "--tree goes with --draft tree, not with --draft mtp"),
        (["a", "--num-draft", "2", "--draft", "tree"], "--num-draft 2 with --draft tree: --tree has a number for each"),
        (["a", "--num-draft", "2", "--draft", "none"], "--num-draft 2 with --draft none: nothing is drafted; leave it"),
        (["a", "--num-draft", "auto", "--explain"], "--num-draft auto times rounds; give a number"),
        (["a", "--num-draft", "auto", "--draft", "tree"], "--num-draft auto with --draft tree"),
        (["a", "--draft", "model"], "a model that drafts is given by both, --draft model --draft-model PATH"),
        (["a", "--draft-model", "nowhere"], "--draft-model nowhere is not a directory; give a run directory"),
        (["a", "--temperature", "-1"], r"--temperature -1\.0 must be at least 0"),
        (["a", "--top-p", "0.5"], r"--top-p 0\.5 matter where tokens are drawn, .*give a temperature above 0"),
        (["a", "--top-p", "1.5", "--temperature", "1"], r"top_p=1\.5 must lie in \(0, 1\]"),
        (["a", "--device", "cpuu"], "--device='cpuu' is no device"),
        (["a", "b", "--explain"], "--explain shows the decoding of one prompt, and 2 were given"),
        (["a", "--batch-size", "0"], "--batch-size 0 must be at least 1 prompt at a time"),
        (["a", "--stop", "b", "--stop", ""], "--stop '' is in every text and would end it at once; give some text"),
        (["a", "--widths", "3,2"], "--widths are candidates of a beam; say how many texts it keeps, --beam N"),
        (["a", "--beam", "0"], "--beam 0 must keep at least 1 text"),
        (["a", "--beam", "2", "--widths", "3,2"], "attends to earlier positions, so every candidate path would need"),
        (["a", "--beam", "2", "--stop", "b"], "--beam searches .*, and has no use for --stop; leave it out"),
        (
            ["a", "--beam", "2", "--draft", "lookup", "--temperature", "1"],
            "--beam searches .* has no use for --draft, --temperature; leave them out",
        ),
        (["a", "--three-phase", "--temperature", "1"], "--three-phase is greedy decoding with chains of drafts; leave"),
        (["a", "--three-phase", "--tree", "2,1"], "--three-phase is greedy decoding with chains of drafts"),
        (["a", "--explain", "--json"], "--explain shows the rounds of one prompt, and has no use for --json; leave it"),
        (["a", "--explain", "--draft", "none"], "--explain shows drafts and .*, and --draft none makes none"),
    ],
)
def test_refused(command_line, save, model_of, arguments, message):
    assert_refused(command_line("--model", save(model_of()), *arguments), message)


def assert_refused(outcome, message):
    code, out, err = outcome
    assert code == 1
    assert out == ""
    assert "Traceback" not in err
    assert re.search(rf"^error: .*{message}", err, re.MULTILINE), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--draft", "tree"],
            "--draft tree: this model has no heads to draft with, .*; choose --draft none or --draft lookup",
        ),
        (["--draft", "mtp"], "--draft mtp: this model has no heads to draft with"),
        (["--explain"], "this model has no heads to draft with; choose --draft lookup, or --draft-model PATH"),
        (["--num-draft", "2"], "--num-draft 2: this model has no heads to draft with"),
        (["--three-phase"], "--three-phase verifies drafts, and this model has no heads to draft with; choose"),
    ],
)
def test_refused_without_heads(command_line, save, model_of, arguments, message):
    assert_refused(command_line("--model", save(model_of(depth=1)), "a", *arguments), message)


def test_a_drafting_model_of_another_vocabulary(command_line, save, model_of, tiny_trunk):
    other = MTPModel.from_trunk(tiny_trunk("llama", vocab_size=9), MTPConfig(depth=1))
    path = save(other, "other", CharTokenizer("abcdef="))
    outcome = command_line("--model", save(model_of()), "a", "--draft-model", path)
    assert_refused(outcome, "the drafting model has 9 tokens and the model 7")


def test_a_drafting_model_of_other_letters(command_line, save, model_of):
    path = save(model_of(), "other", CharTokenizer("bacd="))
    outcome = command_line("--model", save(model_of()), "a", "--draft-model", path)
    assert_refused(outcome, "writes in other tokens than the model, such as 'a', so that none of its drafts would mean")


def test_a_cache_that_does_not_fit(command_line, save, model_of, monkeypatch):
    monkeypatch.setattr("worldmtp.decoding.limits.free_memory", lambda device: 0)
    assert_refused(
        command_line("--model", save(model_of()), "a"),
        r"the cache takes .*, copies .*, and 0\.0 MiB are free.* See --batch-size and --max-new-tokens\.",
    )


def test_no_run(command_line, tmp_path):
    assert_refused(
        command_line("ab="), rf"no finished run with a model below {tmp_path}/runs; make the demo's with `ma"
    )


def test_no_prompt(command_line, save, model_of, stdin_of):
    stdin_of("")
    assert_refused(command_line("--model", save(model_of())), "no prompt was given; pass prompts as arguments, or on")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "--model it has neither config.json nor model/config.json; give a run directory"),
        (["config.yaml"], "--model it is a run that has not come to its end, .*worldmtp train resume=it"),
        (["config.json"], r"it has no tokenizer_config\.json, so its tokens cannot be told from text"),
    ],
)
def test_directories_that_hold_no_model(command_line, tmp_path, files, message):
    (tmp_path / "it").mkdir()
    for name in files:
        (tmp_path / "it" / name).write_text("{}")
    assert_refused(command_line("--model", "it", "ab="), message)


def test_a_model_path_that_is_missing(command_line):
    assert_refused(
        command_line("--model", "nowhere", "ab="), "--model nowhere is not a directory; give a run directory"
    )


def test_a_tree_that_is_no_list_of_numbers(command_line):
    code, _, err = command_line("ab=", "--tree", "3,x")
    assert code == 2
    assert "argument --tree: '3,x' must be numbers of candidates, one for each token ahead, as 3,2,1." in err


def test_help_answers_without_torch(tmp_path):
    program = (
        "import sys\n"
        "from worldmtp.cli.generate import main\n"
        "sys.argv = ['worldmtp generate', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--explain" in done.stdout
    assert done.stdout.endswith("False False\n")
