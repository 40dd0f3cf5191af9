"""Characters to ids and back, and the Hugging Face tokenizer of the same ids."""

import pytest

from worldmtp.envs import CharTokenizer, Tokenizer, TransformersTokenizer, make_tokenizer


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
    with pytest.raises(ValueError, match=r"character 'c' of 'abc' is not in the alphabet 'ab='"):
        CharTokenizer("ab=").encode("abc")


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
