"""The tokenizer: lossless, the same at every call, and learnt as byte-pair encoding is by hand."""

import pytest

from worldmtp.studies.corpus import END_OF_DOCUMENT, MIN_VOCAB_SIZE, encode_documents, train_tokenizer

DOCUMENTS = [
    "def forward(self, hidden_states):\n    return self.norm(hidden_states)\n",
    "class Head:\n    def forward(self, logits):\n        return logits\n",
] * 3
TEXTS = [
    "",
    " ",
    "\n\n\t  \r\n",
    "  leading, and a space before a full stop .  Doesn 't . \n",
    "naïve café, Ελληνικά, 東京, עברית",
    "\U0001f642\U0001f469\u200d\U0001f4bb e\u0301 \u00e9 \ufb01 \u2028 \x00 \x7f",
    "def forward(self):\n        return 0x1F if a != b else [::-1]",
]


def test_round_trip_gives_back_every_text() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=300)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = encode_documents(tokenizer, [text])[0]
        assert tokenizer.decode(ids) == text + END_OF_DOCUMENT
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_merges_are_those_worked_by_hand() -> None:
    # Words: abab x3, ab x1, cd x2. Pair counts: (a,b) 3*2 + 1 = 7, (b,a) 3, (c,d) 2. First merge ab (7).
    # Then abab = [ab ab]: (ab,ab) 3, (c,d) 2. Second merge abab, third cd.
    tokenizer = train_tokenizer(["abab\nabab\nabab\nab\ncd\ncd\n"], vocab_size=MIN_VOCAB_SIZE + 3)
    assert tokenizer.convert_ids_to_tokens([257, 258, 259]) == ["ab", "abab", "cd"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ababab")) == ["abab", "ab"]


def test_smallest_vocabulary_is_the_bytes_and_the_end() -> None:
    tokenizer = train_tokenizer(["anything"], vocab_size=MIN_VOCAB_SIZE)
    ids = encode_documents(tokenizer, ["é🙂", ""])
    assert [len(document) for document in ids] == [2 + 4 + 1, 1]
    assert ids[1].tolist() == [0]
    assert tokenizer.eos_token_id == 0
    assert len(tokenizer) == 257


def test_ties_are_broken_by_token_id_and_not_by_chance() -> None:
    # Four pairs, once each, in falling order of their letters: the bytes' ids ascend with the letters, so ab is first.
    tokenizer = train_tokenizer(["gh\nef\ncd\nab\n"], vocab_size=MIN_VOCAB_SIZE + 4)
    assert tokenizer.convert_ids_to_tokens([257, 258, 259, 260]) == ["ab", "cd", "ef", "gh"]


def test_equal_documents_give_an_equal_tokenizer() -> None:
    first, second = (train_tokenizer(DOCUMENTS, vocab_size=300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_documents_encoded_together_are_as_encoded_alone() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=300)
    together = encode_documents(tokenizer, TEXTS * 20)
    assert len(together) == 140
    for ids, text in zip(together, TEXTS * 20, strict=True):
        assert ids.tolist() == [*tokenizer.encode(text), 0]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=256 must be at least 257"):
        train_tokenizer(DOCUMENTS, vocab_size=256)
    # "aaaa" has two merges, aa and aaaa.
    with pytest.raises(ValueError, match="vocab_size=400, but the 1 documents give 259 tokens; lower it to 259"):
        train_tokenizer(["aaaa"], vocab_size=400)


def test_a_document_with_the_end_token_inside_is_refused() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=260)
    with pytest.raises(ValueError, match=r"Document 1 holds the text '<\|endoftext\|>'"):
        encode_documents(tokenizer, ["fine", f"two{END_OF_DOCUMENT}documents"])
