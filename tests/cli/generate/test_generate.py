"""``worldmtp generate`` as a user meets it: texts known from transformers' generation, choices, messages, codes."""

import json
import os
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from worldmtp.cli import generate as script
from worldmtp.cli.generate_config import GenerateConfig
from worldmtp.cli.generation import write_texts
from worldmtp.decoding import generate, parallel_beam
from worldmtp.envs import CharTokenizer
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

TOKENIZER = CharTokenizer("abcd=")  # ids 2 .. 6, behind padding 0 and EOS 1
NEW = "12"


def transformers_text(model, prompt, num_tokens=int(NEW)):
    """What transformers' greedy generation of the trunk goes on with."""
    ids = torch.tensor([TOKENIZER.encode(prompt)])
    output = model.trunk.generate(ids, max_new_tokens=num_tokens, do_sample=False, eos_token_id=1, pad_token_id=0)
    return plain_text(output[0])


def plain_text(tokens):
    """Text of the ids behind padding and EOS, 0 and 1, which the command leaves out."""
    return TOKENIZER.decode([token for token in tokens.tolist() if token > 1])


@pytest.mark.parametrize("draft", ["none", "mtp", "tree", "lookup", "model", None])
def test_greedy_texts_of_a_ragged_batch_are_those_of_transformers(command_line, save, model_of, draft):
    model, prompts = model_of(), ["ab=", "c", "dacb=a"]
    options = [] if draft is None else ["--draft", draft]
    if draft == "model":
        options += ["--draft-model", save(model_of(seed=1), "drafting")]
    code, out, err = command_line("--model", save(model), "--max-new-tokens", NEW, *options, *prompts)
    assert code == 0, err
    assert out.splitlines() == [transformers_text(model, prompt) for prompt in prompts]


def test_lengths_that_are_found_out(command_line, save, model_of):
    model = model_of()
    options = ("--num-draft", "auto", "--max-new-tokens", NEW)
    code, out, err = command_line("--model", save(model), *options, "ab=")
    assert code == 0, err
    assert out.splitlines() == [transformers_text(model, "ab=")]
    assert "draft mtp, K=4, num_draft=auto" in err
    code, _, err = command_line("ab=", "--num-draft", "fast")
    assert code == 2
    assert "'fast' must be a number of tokens, or auto." in err


def test_drawn_texts_are_those_of_generate(command_line, save, model_of):
    model = model_of()
    law = {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}
    options = [word for name, value in law.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, out, err = command_line("--model", save(model), *options, "--seed", 7, "--max-new-tokens", NEW, "ab=", "cd=")
    output = generate(
        model,
        torch.tensor([TOKENIZER.encode("ab="), TOKENIZER.encode("cd=")]),
        max_new_tokens=12,
        eos_token_id=1,
        do_sample=True,
        generator=torch.Generator().manual_seed(7),
        **law,
    )
    assert code == 0, err
    assert out.splitlines() == [plain_text(row) for row in output.sequences]
    assert "batch size 2, temperature 1.3, draft mtp, K=4, num_draft=3" in err


def test_prompts_from_standard_input_a_line_each(command_line, save, model_of, stdin_of):
    """Blank lines ask nothing: those between paragraphs, those of Windows, and those behind the last."""
    model = model_of()
    stdin_of("ab=\n\r\nc\n\n")
    code, out, err = command_line("--model", save(model), "--max-new-tokens", NEW)
    assert code == 0, err
    assert out.splitlines() == [transformers_text(model, "ab="), transformers_text(model, "c")]
    assert re.findall("note: line (.*) of the input is blank and left out", err) == ["2", "4"]
    stdin_of("\nab=\n\n")
    code, _, err = command_line("--model", save(model), "--max-new-tokens", NEW, "--explain")
    assert code == 0, err


def test_prompts_a_batch_at_a_time(command_line, save, model_of, stdin_of):
    # Three batches of 2, 2 and 1 rows; five tokens a row without drafts are five forwards a batch.
    model, prompts = endless(model_of()), ["ab=", "c", "dacb=a", "b", "a="]
    options = ("--model", save(model), "--max-new-tokens", "5", "--draft", "none", "--batch-size", "2")
    stdin_of("\n".join(prompts))
    for arguments in (prompts, []):
        code, out, err = command_line(*options, *arguments)
        assert code == 0, err
        assert out.splitlines() == [transformers_text(model, prompt, 5) for prompt in prompts]
        assert "25 tokens in 15 trunk forwards (1.00 a row and forward after the prompts')" in err
        assert "batch size up to 2, temperature 0" in err


def test_batches_draw_from_one_stream(command_line, save, model_of):
    model = model_of()
    options = ("--model", save(model), "--max-new-tokens", NEW, "--temperature", "1.5", "--seed", "3")
    code, out, err = command_line(*options, "--batch-size", "1", "ab=", "ab=")
    generator, ids = torch.Generator().manual_seed(3), torch.tensor([TOKENIZER.encode("ab=")])
    law = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12, "eos_token_id": 1}
    expected = [plain_text(generate(model, ids, generator=generator, **law).sequences[0]) for _ in range(2)]
    assert code == 0, err
    assert out.splitlines() == expected
    assert expected[0] != expected[1]


def test_a_batch_is_answered_before_the_next_is_asked_for(save, model_of, capsys):
    model, seen = model_of(), []

    def batches():
        yield ["ab="]
        seen.append(capsys.readouterr().out)
        yield ["c"]

    write_texts(GenerateConfig(max_new_tokens=12), save(model), batches())
    assert seen == [transformers_text(model, "ab=") + "\n"]
    assert capsys.readouterr().out == transformers_text(model, "c") + "\n"


@pytest.fixture
def pipe():
    """A pipe: what is written to the second end can be read as text from the first."""
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as stream, open(writing, "wb", buffering=0) as end:
        yield stream, end


def test_lines_of_a_pipe_are_not_waited_for(pipe, capsys):
    stream, end = pipe
    batches = script.line_batches(stream, 3)
    end.write(b"one\ntwo\nthr")
    assert next(batches) == ["one", "two"]  # a third is on its way, and nobody waits for it
    end.write("ee\r\ncaf\u00e9".encode()[:-1])
    assert next(batches) == ["three"]
    end.write("\u00e9".encode()[1:] + b"\n4\n5\n6\n\n8")
    assert next(batches) == ["caf\u00e9", "4", "5"]
    assert next(batches) == ["6"]
    assert capsys.readouterr().err == "note: line 8 of the input is blank and left out\n"
    end.close()
    assert list(batches) == [["8"]]


def test_lines_of_a_file_come_in_full_batches(tmp_path):
    lines = [f"line {number} {'x' * 40}" for number in range(5000)]  # more than is read at a time
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    with (tmp_path / "prompts.txt").open() as stream:
        batches = list(script.line_batches(stream, 300))
    assert [len(batch) for batch in batches] == [300] * 16 + [200]
    assert [line for batch in batches for line in batch] == lines
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open() as stream:
        assert list(script.line_batches(stream, 300)) == []


@pytest.mark.parametrize("options", [[], ["--draft", "tree"], ["--draft", "none"]], ids=["chain", "tree", "none"])
def test_stops_are_looked_for_in_the_text(command_line, save, model_of, options):
    """A stop of several tokens ends a text wherever drafts are cut; prompts are not searched for it."""
    model, prompts, stops = model_of(), ["ab=", "c", "b", "=db=c"], ["=db=", "==d"]
    whole = [transformers_text(model, prompt) for prompt in prompts]
    expected = []
    for prompt, text in zip(prompts, whole, strict=True):
        new = text[len(prompt) :]
        ends = [new.find(stop) for stop in stops if stop in new]
        expected.append(prompt + (new[: min(ends)] if ends else new))
    assert sum(text != cut for text, cut in zip(whole, expected, strict=True)) >= 3
    words = [word for stop in stops for word in ("--stop", stop)]
    code, out, err = command_line("--model", save(model), "--max-new-tokens", NEW, *options, *words, *prompts)
    assert code == 0, err
    assert out.splitlines() == expected


def test_json_says_why_a_text_ended(command_line, save, model_of):
    # By transformers' greedy generation, ids: "=" goes on 2 0 4 5 1, padding and EOS among them; "d" with 2s for ever.
    model = model_of(seed=2)
    options = ("--model", save(model), "--max-new-tokens", NEW, "--draft", "none", "--json")
    code, out, err = command_line(*options, "--stop", "aaa", "=", "d")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0, err
    # Without drafts the prompt's forward gives one token and each round one more.
    assert lines == [
        {"prompt": "=", "text": "acd", "tokens": [2, 0, 4, 5, 1], "reason": "eos", "rounds": 4},
        {"prompt": "d", "text": "", "tokens": [2, 2, 2], "reason": "stop", "rounds": 2},
    ]
    code, out, err = command_line(*options[:2], "--max-new-tokens", "2", "--draft", "none", "--json", "d")
    assert code == 0, err
    assert json.loads(out) == {"prompt": "d", "text": "aa", "tokens": [2, 2], "reason": "length", "rounds": 1}


@pytest.mark.parametrize("widths", [(), (3, 2, 2)], ids=["beam search", "of the heads"])
def test_a_beam(command_line, save, tiny_trunk, widths):
    trunk = tiny_trunk("llama", vocab_size=7, dtype=torch.float64)
    config = MTPConfig(head="latent", depth=3, initializer_range=0.3, head_init="random")
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).eval()
    options = ["--widths", ",".join(map(str, widths))] if widths else []
    words = ["--beam", "3", *options, "--max-new-tokens", NEW, "ab=", "b"]
    code, out, err = command_line("--model", save(model), *words)
    ids = [torch.tensor([TOKENIZER.encode(prompt)]) for prompt in ("ab=", "b")]
    settings = {"widths": widths or (3,), "num_beams": 3, "max_new_tokens": 12, "eos_token_id": 1}
    expected = [plain_text(parallel_beam(model, row, **settings).sequences[0]) for row in ids]
    assert code == 0, err
    assert out.splitlines() == expected
    assert expected != [transformers_text(model, prompt) for prompt in ("ab=", "b")]  # no greedy text
    shape = ",".join(map(str, widths or (3,)))
    assert f"batch size 2, temperature 0, beam 3, K=3, widths={shape}" in err
    # Prompts x beams rows of 3 + 12 tokens and a tree's nodes.
    assert f"cache: 2 x 6 rows x {15 + (3 if not widths else 3 + 6 + 12)} slots" in err


def test_three_phases(command_line, save, model_of):
    """The same text; a model that drafts for itself is always right, so 12 tokens after the first take 2 x 12 / 4."""
    model = endless(model_of())
    path = save(model)
    options = ("--model", path, "--draft-model", path, "--num-draft", "3", "--max-new-tokens", "13", "--three-phase")
    code, out, err = command_line(*options, "ab=")
    assert code == 0, err
    assert out.splitlines() == [transformers_text(model, "ab=", 13)]
    assert "13 tokens in 7 trunk forwards" in err  # the prompt's, and two for each of three blocks of four
    assert "num_draft=3, three phases" in err


def test_a_checkpoint_of_hugging_face_brings_its_own_tokenizer(command_line, tiny_trunk, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(["<end>", *alphabet])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    # As GPT-2 has it: one token ends texts and stands for what is unknown, and there is no padding.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<end>")
    trunk = tiny_trunk("gpt2", vocab_size=257, dtype=torch.float64, seed=4)
    trunk.generation_config.eos_token_id = 0
    trunk.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    code, out, err = command_line("--model", tmp_path / "gpt2", "--max-new-tokens", "6", "Hé lo")
    ids = tokenizer("Hé lo", return_tensors="pt").input_ids
    new = trunk.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
    assert code == 0, err
    assert out == tokenizer.decode(new, skip_special_tokens=True) + "\n"
    assert out.startswith("Hé lo")
    assert "draft none, K=1, num_draft=0" in err


@pytest.mark.parametrize("draft", ["none", "mtp", "lookup", "model"])
@pytest.mark.parametrize("drawn", [(), ("--temperature", "1", "--seed", "3")])
def test_ids_that_the_tokenizer_has_no_text_for_are_never_written(command_line, save, tiny_trunk, draft, drawn):
    """A checkpoint whose embedding is padded, as some releases' are: its 9 last ids are the likeliest by far."""

    def padded(seed):
        trunk = tiny_trunk("llama", vocab_size=16, dtype=torch.float64, seed=seed)
        with torch.no_grad():
            trunk.lm_head.weight[7:14] = 100 * trunk.lm_head.weight[:7]
        return MTPModel.from_trunk(trunk, MTPConfig(depth=3, initializer_range=0.3), torch.Generator().manual_seed(0))

    model = padded(0).eval()
    choice = ("--draft", draft) if draft != "model" else ("--draft-model", save(padded(1), "small"))
    code, out, err = command_line(
        "--model", save(model), *choice, *drawn, "--max-new-tokens", NEW, "--device", "cpu", "ab="
    )
    assert code == 0, err
    # What only the tokenizer's seven ids can be, by the logits of the trunk alone.
    ids = TOKENIZER.encode("ab=")
    if not drawn:
        with torch.no_grad():
            while len(ids) < 3 + int(NEW) and ids[-1] != 1:
                ids.append(int(model.trunk(torch.tensor([ids])).logits[0, -1, :7].argmax()))
        assert out == plain_text(torch.tensor(ids)) + "\n"
    assert set(out) <= set("abcd=\n")


def test_the_newest_finished_run_with_a_model_is_chosen(command_line, save, model_of, tmp_path):
    for age, (name, is_done) in enumerate([("killed", False), ("new", True), ("old", True)]):
        save(model_of(seed=age), f"runs/quick/{name}/model")
        if is_done:
            (tmp_path / "runs/quick" / name / "DONE").touch()
            os.utime(tmp_path / "runs/quick" / name / "DONE", (1e9 - age, 1e9 - age))
    (tmp_path / "runs/study").mkdir()
    (tmp_path / "runs/study/DONE").touch()  # newer than all, and without a model
    code, out, err = command_line("ab=", "--max-new-tokens", NEW)
    assert code == 0, err
    assert err.startswith("model: runs/quick/new/model, of the newest finished run under ./runs\n")
    assert out == transformers_text(model_of(seed=1), "ab=") + "\n"


def test_a_run_directory_stands_for_its_model(command_line, save, model_of):
    model = model_of()
    path = save(model, "elsewhere/model").parent
    code, out, err = command_line("--model", path, "ab=", "--max-new-tokens", NEW)
    assert code == 0, err
    assert out == transformers_text(model, "ab=") + "\n"
    assert err.startswith(f"model: {path / 'model'}\n")


def endless(model):
    """Padding and EOS get logits of zero, which the best of five others exceeds as long as the texts below go on."""
    with torch.no_grad():
        model.trunk.lm_head.weight[:2] = 0.0
    return model


def test_without_a_number_texts_end_with_the_context(command_line, save, model_of):
    # 128 positions in all: 120 of the prompt's leave 8, and 64 is the most that nobody asked for.
    path = save(endless(model_of()))
    for prompt, num_tokens in (("a" * 120, 8), ("a=", 64)):
        code, out, err = command_line("--model", path, prompt)
        assert code == 0, err
        assert len(out) == len(prompt) + num_tokens + 1  # the end of the line


def test_the_account_of_decoding_without_drafts(command_line, save, model_of):
    # Five tokens: the first from the prompt's forward, four more one by one.
    path = save(endless(model_of()))
    code, _, err = command_line("--model", path, "--draft", "none", "--max-new-tokens", "5", "ab=")
    assert code == 0, err
    # The tests' llama: 2 layers, 2 key-value heads of 8, float64; 3 tokens of the prompt and 5 new ones.
    assert "cache: 2 x 1 rows x 8 slots x 2 layers x 2 key-value heads x 8 numbers x 8 bytes = 0.0 MiB" in err
    assert re.search(
        r"^5 tokens in 5 trunk forwards \(1\.00 a row and forward after the prompts'\), \d+\.\d{3} s not warmed up; "
        r"batch size 1, temperature 0, draft none, K=4, num_draft=0, cpu \(.+, cores: \d+, threads: \d+\), float64$",
        err,
        re.MULTILINE,
    )
