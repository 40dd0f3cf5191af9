"""What tells one turn from another: what was said in it, and after what."""

import torch

from worldmtp.dynamics.turns import NOTHING, Turns, said_after


def conversations() -> Turns:
    """Three of two turns. Heard, said, heard, said: 1 2|3|4|5, then the same reply after 1|2 3, and after 1 2|3."""
    said = [[[3, NOTHING], [5, NOTHING]], [[2, 3], [5, NOTHING]], [[3, NOTHING], [5, 6]]]
    shape = (3, 2)
    return Turns(
        opening=torch.tensor([[1, 2], [1, NOTHING], [1, 2]]),
        said=torch.tensor(said),
        replies=torch.tensor([[[4], [7]], [[4], [8]], [[4], [NOTHING]]]),
        rewards=torch.zeros(shape),
        ended=torch.zeros(shape, dtype=torch.bool),
        mask=torch.ones(shape, dtype=torch.bool),
    )


def keys(turn: int, history: bool) -> list[tuple[int, ...]]:
    return said_after(conversations(), torch.arange(3), torch.full((3,), turn), history)


def test_the_last_text_and_what_was_said_then() -> None:
    """The second turns of the first two are one, whatever their openings and their replies; the third says more."""
    assert keys(1, history=False) == [(4, -1, 5, -1), (4, -1, 5, -1), (4, -1, 5, 6, -1)]


def test_with_the_history_openings_tell_them_apart() -> None:
    assert keys(1, history=True) == [
        (1, 2, -1, 3, -1, 4, -1, 5, -1),
        (1, -1, 2, 3, -1, 4, -1, 5, -1),
        (1, 2, -1, 3, -1, 4, -1, 5, 6, -1),
    ]


def test_where_one_text_ends_is_part_of_it() -> None:
    """Of "1 2" heard and "3" said is not "1" heard and "2 3" said; with the history first turns have the same keys."""
    assert keys(0, history=False) == [(1, 2, -1, 3, -1), (1, -1, 2, 3, -1), (1, 2, -1, 3, -1)]
    assert keys(0, history=True) == keys(0, history=False)


def test_conversations_are_asked_for_in_any_order() -> None:
    found = said_after(conversations(), torch.tensor([2, 0, 2]), torch.tensor([1, 0, 0]), history=False)
    assert found == [(4, -1, 5, 6, -1), (1, 2, -1, 3, -1), (1, 2, -1, 3, -1)]
