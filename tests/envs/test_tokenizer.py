"""Characters to ids and back, and the Hugging Face tokenizer of the same ids."""

import shlex
import socket

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from worldmtp.envs import CharTokenizer, Example, TextGenVectorEnv, Tokenizer, TransformersTokenizer, make_tokenizer
from worldmtp.envs.tasks.strings import Copy
from worldmtp.envs.tokenizer import alphabet_error, written_text
from worldmtp.envs.worlds.task import WorldTask


def test_ids_are_pad_eos_then_the_alphabet():
    tokenizer = CharTokenizer("ab=")
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 5)
    assert tokenizer.encode("ba=a") == [3, 2, 4, 2]
    assert tokenizer.decode([3, 2, 1, 0, 0]) == "ba"
    assert isinstance(tokenizer, Tokenizer)


def test_default_alphabet_is_printable_ascii():
    tokenizer = make_tokenizer("char")
    assert tokenizer.vocab_size == 97  # 95 characters from blank to tilde, pad and eos
    text = "".join(chr(code) for code in range(32, 127))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_character_is_named():
    with pytest.raises(ValueError, match=r"the alphabet 'ab=' of the tokenizer lacks 'c', as in 'abc'\.$"):
        CharTokenizer("ab=").encode("abc")


def test_padding_is_nothing_at_the_end_and_no_text_elsewhere():
    tokenizer = CharTokenizer("ab=")
    assert tokenizer.decode([2, 0, 0, 3, 1, 0]) == "a\ufffd\ufffdb"
    assert tokenizer.decode([2, 0, 1]) == "a\ufffd"
    assert tokenizer.decode([2, 1, 0, 3]) == "a\ufffdb"
    assert tokenizer.decode([2, 0, 0]) == "a"  # a row
    assert written_text(tokenizer, [2, 0, 0]) == "a\ufffd\ufffd"  # an answer that ran out of room


@pytest.fixture
def byte_pairs(tmp_path):
    """A tokenizer of bytes with <pad> 0, </s> 1 and <s> 2, which is marked as special and given no role."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>", "<s>"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["one two"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>").save_pretrained(tmp_path)
    return TransformersTokenizer(str(tmp_path))


@pytest.mark.parametrize("text", ["a</s>b=", "</s>", "<pad><s>", "a <s>"])
def test_text_cannot_spell_a_special_token(byte_pairs, text):
    ids = byte_pairs.encode(text)
    assert not {0, 1, 2} & {*ids}
    assert byte_pairs.decode([*ids, 1, 0]) == text


def test_a_tokenizer_whose_tokens_are_bytes_needs_no_vocabulary_file(tmp_path):
    """Padding 0, the end 1 and one unknown come first, so that "a", byte 97, is 100."""
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = TransformersTokenizer(str(tmp_path))
    assert tokenizer.encode("aé") == [100, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([100, 3 + 0xC3, 3 + 0xA9, 1, 0]) == "aé"


def test_a_special_token_that_the_policy_writes_is_no_text(byte_pairs):
    (a,), (b,) = byte_pairs.encode("a"), byte_pairs.encode("b")
    assert byte_pairs.special_ids == {0, 1, 2}
    assert byte_pairs.decode([a, 0, 0, b, 1, 0, 0]) == "a\ufffd\ufffdb"
    assert byte_pairs.decode([a, 2, b, 1]) == byte_pairs.decode([a, 0, b]) == "a\ufffdb"
    assert byte_pairs.decode([a, 1, b, 1]) == "ab"  # two turns


def test_a_tokenizer_that_is_not_there_is_told_at_once(tmp_path, monkeypatch):
    """Without a word to any hub, whose retries take most of a minute where there is no network."""
    from transformers import AutoTokenizer

    def asked(*args, **kwargs):
        raise AssertionError("the network is asked")

    # The variables of these tests keep transformers off the network in any case: what it is told is looked at as well.
    told, read = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *names, **how: told.append(how) or read(*names, **how))
    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    with pytest.raises(ValueError, match=r"no tokenizer at 'nothere': .*hf download nothere --local-dir checkpoint\.$"):
        make_tokenizer("transformers:nothere")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"the tokenizer at '.*' cannot be read: (.|\n)* tokenizer\.save_pretrained w"):
        TransformersTokenizer(str(tmp_path))
    # Of this config alone transformers makes a tokenizer that writes every text with no token at all.
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"there is no tokenizer at '.*': none of \['merges\.txt', .*\] is in"):
        TransformersTokenizer(str(tmp_path))
    assert [how.get("local_files_only") for how in told] == [True, True, True]


def test_a_vocabulary_that_has_a_special_token_as_a_word_refuses_it(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"[PAD]": 0, "END": 1, "[UNK]": 2, "a": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "eos_token": "END", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)
    tokenizer = TransformersTokenizer(str(tmp_path))
    assert tokenizer.encode("a b") == [3, 2]
    with pytest.raises(ValueError, match=r"'a END' spells 'END', which the tokenizer at .* as its special token 1"):
        tokenizer.encode("a END")


def test_a_text_that_the_vocabulary_cannot_write_is_named(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = TransformersTokenizer(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"cannot write 'b': it has no token for 'b'; .*UNK.*\. Take a task whose texts"
    ):
        tokenizer.encode("b")
    with pytest.raises(ValueError, match=r"cannot write 'ab1b': it has no token for 'b', '1'; "):
        tokenizer.encode("ab1b")


@pytest.mark.parametrize("ids", [[5], [-1], [2, 99]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match=r"leave the vocabulary 0\.\.4"):
        CharTokenizer("ab=").decode(ids)


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_an_alphabet_names_each_character_once(alphabet):
    with pytest.raises(ValueError, match="at least one character and each once"):
        CharTokenizer(alphabet)


def test_spec_round_trip():
    tokenizer = CharTokenizer("xyz")
    for spec in (tokenizer.spec(), "char:xyz", {"kind": "char", "alphabet": "xyz"}, tokenizer):
        assert make_tokenizer(spec).spec() == {"kind": "char", "alphabet": "xyz"}


def test_unknown_kind_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"kind 'chars' is unknown.*did you mean 'char'"):
        make_tokenizer("chars")
    with pytest.raises(ValueError, match=r"does not fit kind 'char'.*alphabets"):
        make_tokenizer({"kind": "char", "alphabets": "ab"})


def test_transformers_tokenizer_has_the_same_ids_and_survives_saving(tmp_path):
    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyz <>=0123456789\n")
    backend = tokenizer.to_transformers()
    backend.save_pretrained(tmp_path)
    loaded = TransformersTokenizer(str(tmp_path))
    assert (loaded.vocab_size, loaded.pad_id, loaded.eos_id) == (tokenizer.vocab_size, 0, 1)
    for text in ["abc=", "  two  blanks ", "a\nb", "<pad><eos>", ""]:
        ids = tokenizer.encode(text)
        assert backend(text)["input_ids"] == ids  # no specials are added, none is recognised in text
        assert loaded.encode(text) == ids
        assert loaded.decode([*ids, 1, 0, 0]) == text
    assert make_tokenizer(loaded.spec()).encode("abc") == tokenizer.encode("abc")


def test_characters_outside_an_alphabet_are_told_at_once_with_a_tokenizer_that_has_them():
    tokenizer = make_tokenizer('char:ab= "$')
    assert alphabet_error(tokenizer, ["ab", ""]) is None
    message = str(alphabet_error(tokenizer, ["ab=", "bä=", "☃ö", "ä"]))
    assert message.startswith(
        "the alphabet of the tokenizer lacks 'äö☃', as in 'bä='; leave that out of the texts, or "
    )
    pasted = message.partition("has it: ")[2].partition(" (worldmtp train)")[0]
    (override,) = OverridesParser.create().parse_overrides(shlex.split(pasted))
    assert override.key_or_group == "env.kwargs.tokenizer"
    assert make_tokenizer(override.value()).spec() == {"kind": "char", "alphabet": 'ab= "$äö☃'}
    many = "".join(map(chr, range(0x4E00, 0x4F00)))
    message = str(alphabet_error(tokenizer, [many]))
    assert "lacks '一丁丂七丄丅丆万丈...'," in message  # 256 of them, which no alphabet should hold
    assert "transformers:<directory of a tokenizer>" in message


@pytest.mark.parametrize("budgets", [{}, {"max_prompt": 9, "max_new": 9}])
def test_a_task_in_other_letters_is_refused_once_with_all_of_them(budgets):
    class Words(Copy):
        def sample(self, rng, split):
            return Example(str(rng.choice(["é=", "ü=", "a="])) + str(rng.integers(99)), str(rng.choice(["ñ", "b"])))

    with pytest.raises(ValueError, match="lacks 'éñü', as in"):
        TextGenVectorEnv(1, task=Words(), pool_size=256, **budgets).dataset.pool("train")


def test_a_reply_in_other_letters_is_told_with_a_tokenizer_that_has_them():
    class Speaks:
        def reset(self, seed):
            return "?", {"hidden": seed}

        def step(self, text):
            return "já", 0.5, False, False, {}

    envs = TextGenVectorEnv(1, task=WorldTask(Speaks), tokenizer="char:j?", max_prompt=1, max_new=9, pool_size=4)
    envs.reset(seed=0)
    with pytest.warns(RuntimeWarning, match=r"the alphabet of the tokenizer lacks 'á'.*tokenizer=.*char:j\?á"):
        envs.step(np.array([envs.tokenizer.eos_id]))
