"""Windows: pure in seed and step, inside the text, without overlap where they measure."""

from collections.abc import Callable

import pytest
import torch

from worldmtp.studies.batches import (
    batch_at,
    batch_starts,
    document_ids_at,
    eval_starts,
    eval_windows,
)

# Token i is 10 i: a window tells where it was cut.
TOKENS = 10 * torch.arange(100)


def test_a_window_is_the_text_from_its_start() -> None:
    starts = batch_starts(100, length=7, batch_size=5, seed=3, step=2)
    expected = [[10 * (start + i) for i in range(7)] for start in starts.tolist()]
    assert batch_at(TOKENS, 7, 5, seed=3, step=2).tolist() == expected


def test_batches_go_on_where_a_run_stopped() -> None:
    whole = [batch_at(TOKENS, 8, 4, seed=1, step=step) for step in range(10)]
    resumed = [batch_at(TOKENS, 8, 4, seed=1, step=step) for step in range(6, 10)]
    assert all(torch.equal(first, second) for first, second in zip(whole[6:], resumed, strict=True))
    assert not torch.equal(whole[0], whole[6])


def test_every_start_is_drawn_and_equally_often() -> None:
    # 10 tokens, windows of 7: starts 0 .. 3. Of 4000 draws each gets Binomial(4000, 1/4): 1000 +- 27.4; five standard
    # deviations on four counts fail for fewer than one seed in 400 000. A start of 4 would cross the end.
    starts = torch.cat([batch_starts(10, length=7, batch_size=40, seed=0, step=step) for step in range(100)])
    counts = starts.bincount()
    assert counts.shape == (4,)
    assert bool((counts - 1000).abs().max() < 137)


def test_a_window_as_long_as_the_text_is_the_text() -> None:
    assert batch_at(TOKENS, 100, 2, seed=0, step=0).tolist() == [TOKENS.tolist()] * 2
    assert eval_windows(TOKENS, 100, 1).tolist() == [TOKENS.tolist()]


def test_seeds_and_steps_have_streams_of_their_own() -> None:
    # Words of seed and step must not run together: (seed 0, step 1) is not (seed 2^32, step 0).
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (0, 2**32)]
    drawn = [tuple(batch_starts(10**9, 2, 8, seed=seed, step=step).tolist()) for seed, step in keys]
    assert len(set(drawn)) == len(keys)


def test_no_global_generator_is_drawn_from(global_rng_untouched: Callable) -> None:
    with global_rng_untouched():
        batch_at(TOKENS, 8, 4, seed=1, step=0)


def test_evaluation_windows_are_even_and_do_not_overlap() -> None:
    # 100 tokens, 3 windows: every 33 tokens.
    assert eval_starts(100, length=20, num_windows=3).tolist() == [0, 33, 66]
    windows = eval_windows(TOKENS, 20, 3)
    assert windows[:, 0].tolist() == [0, 330, 660]
    assert windows[:, -1].tolist() == [190, 520, 850]


@pytest.mark.parametrize(("length", "num_windows"), [(7, 14), (33, 3), (50, 2), (1, 100), (30, 1)])
def test_no_token_is_measured_twice(length: int, num_windows: int) -> None:
    windows = eval_windows(TOKENS, length, num_windows)
    assert windows.shape == (num_windows, length)
    assert len(windows.unique()) == num_windows * length


def test_document_ids_by_hand() -> None:
    # Documents 0 1 2 | 3 4 | 5 ...; windows of four tokens from 0, 2 and 4.
    ids = document_ids_at(torch.tensor([0, 3, 5]), torch.tensor([0, 2, 4]), length=4)
    assert ids.tolist() == [[0, 0, 0, 1], [0, 1, 1, 2], [1, 2, 2, 2]]


@pytest.mark.parametrize("starts", [[], [1, 2], [0, 3, 3], [0, 5, 2]])
def test_unsorted_documents_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="document_starts must start at 0 and ascend"):
        document_ids_at(torch.tensor(starts, dtype=torch.int64), torch.tensor([0]), length=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, r"length=0 of a window must lie in 1 \.\. 100"),
        ({"length": 101}, r"length=101 of a window must lie in 1 \.\. 100.*pass more text"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"step": -1}, "step=-1 must be at least 0"),
    ],
)
def test_wrong_batches_are_refused(changes: dict[str, int], message: str) -> None:
    arguments = {"length": 8, "batch_size": 2, "seed": 0, "step": 0} | changes
    with pytest.raises(ValueError, match=message):
        batch_at(TOKENS, **arguments)


@pytest.mark.parametrize("num_windows", [0, 4])
def test_overlapping_or_no_evaluation_windows_are_refused(num_windows: int) -> None:
    with pytest.raises(
        ValueError, match=rf"num_windows={num_windows}, but 100 tokens hold 1 to 3 windows of length=30"
    ):
        eval_windows(TOKENS, 30, num_windows)
