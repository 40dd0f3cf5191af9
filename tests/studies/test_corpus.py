"""The corpus: which files, which side of the split, and what the chain of tokens holds."""

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from worldmtp.studies.corpus import END_OF_DOCUMENT, Corpus, load_corpus, split_files, stdlib_files

SOURCES = [f"def step_{index}(state):\n    return state + {index}  # naïve, 東京 🙂\n" * 4 for index in range(12)]
VOCAB_SIZE = 270


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve files of a few lines, and one of each kind that is left out."""
    root = tmp_path / "library"
    for index, source in enumerate(SOURCES):
        _write(root / f"package_{index % 3}" / f"module_{index:02}.py", source.encode())
    for folder in ("site-packages", "test", "package_0/tests", "idlelib/idle_test", "encodings", "config-3.11-linux"):
        _write(root / folder / "left_out.py", b"x = 1\n")
    _write(root / "latin.py", "name = 'é'\n".encode("latin-1"))
    _write(root / "empty.py", b"")
    _write(root / "_sysconfigdata__linux.py", b"prefix = 1\n")
    _write(root / "notes.txt", b"not python")
    return root


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def load(root: Path, **changes: object) -> Corpus:
    arguments = {"vocab_size": VOCAB_SIZE, "held_out_fraction": 0.4, "seed": 0, "root": root}
    return load_corpus(**(arguments | changes))  # type: ignore[arg-type] # values of several types


def test_files_are_the_sources_and_sorted(tree: Path) -> None:
    expected = sorted(f"package_{index % 3}/module_{index:02}.py" for index in range(12))
    assert [path.as_posix() for path in stdlib_files(tree)] == expected


def test_standard_library_is_read_without_its_tests_and_packages() -> None:
    paths = stdlib_files()
    names = {path.as_posix() for path in paths}
    assert {"argparse.py", "json/decoder.py", "unittest/mock.py"} <= names
    assert not any(path.is_absolute() for path in paths)
    root = Path(sysconfig.get_paths()["stdlib"])
    assert (root / "encodings" / "cp1250.py").exists()
    assert not any({"test", "tests", "site-packages", "encodings"} & set(path.parts) for path in paths)


def test_split_is_the_hash_of_seed_and_path() -> None:
    # The rule again, with the 48-bit number compared as an integer: first 12 hex digits < 0.25 * 2^48.
    paths = [Path(f"a/b_{index}.py") for index in range(40)]
    digits = {path: hashlib.sha256(f"split:3:{path.as_posix()}".encode()).hexdigest()[:12] for path in paths}
    held_out = [path for path in paths if int(digits[path], 16) < 0x400000000000]
    assert split_files(paths, 0.25, seed=3) == ([path for path in paths if path not in held_out], held_out)


def test_split_is_disjoint_and_complete_and_another_seed_splits_otherwise() -> None:
    paths = [Path(f"{index}.py") for index in range(1000)]
    train, held_out = split_files(paths, 0.2, seed=0)
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(paths)
    # Binomial(1000, 0.2): 200 +- 12.6; five standard deviations are left by one seed in two million.
    assert 137 <= len(held_out) <= 263
    assert held_out != split_files(paths, 0.2, seed=1)[1]


def test_a_new_file_moves_no_other() -> None:
    paths = [Path(f"{index}.py") for index in range(50)]
    train, held_out = split_files(paths, 0.3, seed=0)
    more_train, more_held_out = split_files([Path("0_new.py"), *reversed(paths)], 0.3, seed=0)
    assert set(train) <= set(more_train)
    assert set(held_out) <= set(more_held_out)


def test_a_larger_fraction_holds_out_the_same_files_and_more() -> None:
    paths = [Path(f"{index}.py") for index in range(200)]
    assert set(split_files(paths, 0.1, seed=0)[1]) < set(split_files(paths, 0.3, seed=0)[1])


def documents_of(corpus: Corpus, side: str) -> list[str]:
    """Text between the document starts, which must each be closed by the end token."""
    tokens, starts = getattr(corpus, f"{side}_tokens"), getattr(corpus, f"{side}_starts").tolist()
    texts = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        text = corpus.tokenizer.decode(tokens[start:end])
        assert text.endswith(END_OF_DOCUMENT)
        texts.append(text.removesuffix(END_OF_DOCUMENT))
    return texts


def test_corpus_is_the_files_text_and_nothing_else(tree: Path) -> None:
    corpus = load(tree)
    train, held_out = documents_of(corpus, "train"), documents_of(corpus, "held_out")
    assert sorted(train + held_out) == sorted(SOURCES)
    assert corpus.vocab_size == VOCAB_SIZE == len(corpus.tokenizer)
    assert corpus.train_tokens.dtype == torch.int64
    assert int(corpus.train_tokens.max()) < VOCAB_SIZE


def test_sides_are_those_of_the_split(tree: Path) -> None:
    train, held_out = split_files(stdlib_files(tree), 0.4, seed=0)
    corpus = load(tree)
    assert sorted(documents_of(corpus, "train")) == sorted((tree / path).read_text("utf-8") for path in train)
    assert sorted(documents_of(corpus, "held_out")) == sorted((tree / path).read_text("utf-8") for path in held_out)


def test_held_out_text_does_not_reach_the_tokenizer(tree: Path) -> None:
    before = load(tree)
    _, held_out = split_files(stdlib_files(tree), 0.4, seed=0)
    (tree / held_out[0]).write_text("unheard_of " * 500, encoding="utf-8")
    after = load(tree)
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert torch.equal(after.train_tokens, before.train_tokens)
    assert len(after.held_out_tokens) > len(before.held_out_tokens)


def test_same_call_gives_the_same_corpus(tree: Path) -> None:
    first, second = load(tree), load(tree)
    assert torch.equal(first.train_tokens, second.train_tokens)
    assert torch.equal(first.held_out_tokens, second.held_out_tokens)
    assert first.fingerprint == second.fingerprint


def test_fingerprint_states_text_and_split_and_changes_with_one_byte(tree: Path) -> None:
    before = load(tree).fingerprint
    num_bytes = sum(len(source.encode()) for source in SOURCES)
    num_held_out = len(split_files(stdlib_files(tree), 0.4, seed=0)[1])
    for stated in ("files=12 ", f"bytes={num_bytes} ", f"held_out_files={num_held_out} ", "seed=0 ", "vocab_size=270 "):
        assert f" {stated}" in before
    changed = tree / "package_0" / "module_00.py"
    changed.write_bytes(changed.read_bytes().replace(b"state", b"State", 1))
    after = load(tree).fingerprint
    assert f"bytes={num_bytes} " in after  # as long as before: the hash alone tells
    assert before.split("sha256=")[1][:16] != after.split("sha256=")[1][:16]


def test_max_files_takes_some_of_them(tree: Path) -> None:
    texts = [text for side in ("train", "held_out") for text in documents_of(load(tree, max_files=8), side)]
    assert len(texts) == 8
    assert set(texts) < set(SOURCES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_files": 0}, r"max_files=0 must be at least 1, or None"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction=1.0 must lie inside \(0, 1\)"),
        ({"held_out_fraction": 0.0}, r"held_out_fraction=0.0 must lie inside \(0, 1\)"),
        ({"held_out_fraction": 1e-9}, r"12 are to train on and 0 held out, and both must be there"),
        ({"held_out_fraction": 1 - 1e-9}, r"0 are to train on and 12 held out"),
    ],
)
def test_wrong_arguments_are_refused(tree: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tree, **changes)


def test_absolute_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is absolute, so its side of the split would differ between machines"):
        split_files([tmp_path / "a.py"], 0.1, seed=0)


def test_a_root_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing is not a folder; pass one that holds Python files"):
        stdlib_files(tmp_path / "missing")
    _write(tmp_path / "a.py", b"")
    with pytest.raises(ValueError, match=r"No Python file under .* is one to learn from: there is none"):
        stdlib_files(tmp_path)
