"""Caches in and out: rows are selected, branches share a prefix, and nothing shared is written to."""

import pytest
import torch

from worldmtp.dynamics.states import Depths, LayerCache, Shared, make_cache, read_cache


def make_layers(num_layers: int = 2, rows: int = 3, length: int = 4) -> list[LayerCache]:
    """Keys count up from 0, values are their negatives, and each layer starts where the one before ended."""
    size = rows * 2 * length * 5
    blocks = [
        torch.arange(layer * size, (layer + 1) * size, dtype=torch.float64).view(rows, 2, length, 5)
        for layer in range(num_layers)
    ]
    return [LayerCache(block, -block) for block in blocks]


def test_what_is_put_in_comes_out() -> None:
    layers = make_layers()
    read = read_cache(make_cache(layers))
    assert len(read) == 2
    for expected, actual in zip(layers, read, strict=True):
        assert torch.equal(actual.keys, expected.keys)
        assert torch.equal(actual.values, expected.values)
    assert make_cache(layers).get_seq_length() == 4


def test_rows_are_selected_with_repeats() -> None:
    (layer,) = make_layers(num_layers=1)
    chosen = layer.select(torch.tensor([2, 0, 2]))
    assert chosen.keys[:, 0, 0, 0].tolist() == [80, 0, 80]  # a row holds 2 * 4 * 5 = 40 numbers
    assert chosen.values[:, 0, 0, 0].tolist() == [-80, 0, -80]


def test_appending_to_a_made_cache_leaves_its_layers_alone() -> None:
    layers = make_layers()
    before = [layer.keys.clone() for layer in layers]
    cache = make_cache(layers)
    one = torch.ones((3, 2, 1, 5), dtype=torch.float64)
    keys, _ = cache.update(one, one, 0)
    assert keys.shape == (3, 2, 5, 5)
    assert torch.equal(keys[:, :, -1:], one)
    for layer, kept in zip(layers, before, strict=True):
        assert torch.equal(layer.keys, kept)
    other = make_cache(layers)
    assert other.get_seq_length() == 4
    assert other.layers[1].keys.shape == (3, 2, 4, 5)


def test_a_selection_is_a_copy() -> None:
    (layer,) = make_layers(num_layers=1)
    layer.select(torch.tensor([0])).keys.zero_()
    assert float(layer.keys[0, 1, 3, 4]) == 39


def test_a_layer_without_keys_is_refused() -> None:
    cache = make_cache(make_layers(num_layers=1))
    cache.layers.append(_Recurrent())
    with pytest.raises(TypeError, match=r"layer 1 caches a _Recurrent without keys and values; branching .* attention"):
        read_cache(cache)


class _Recurrent:
    """What a layer of linear attention caches: a state, no keys."""

    keys = values = None


def test_layers_of_different_lengths_are_filled_up_with_zeros() -> None:
    (short,), (long,) = make_layers(1, rows=1, length=2), make_layers(1, rows=2, length=3)
    merged = LayerCache.cat([short, long])
    assert merged.keys.shape == (3, 2, 3, 5)
    assert torch.equal(merged.keys[:1, :, :2], short.keys)
    assert torch.equal(merged.values[1:], long.values)
    assert not merged.keys[0, :, 2].any()


def test_a_shared_table_is_not_copied_and_does_not_grow() -> None:
    """Three numbers in a table of three rows; whatever is stored from elsewhere, unread rows are left behind."""
    (layer,) = make_layers(1, rows=3)
    shared = Shared(layer, torch.tensor([2, 0, 2]))
    assert shared.select(torch.tensor([1, 1])).table is layer
    assert Shared.cat([shared, shared.select(torch.tensor([1]))]).table is layer
    assert Shared.cat([shared, shared.select(torch.tensor([1]))]).rows.tolist() == [2, 0, 2, 0]
    for start in range(1, 9):
        (new,) = make_layers(1, rows=1)
        new = LayerCache(new.keys + 1000 * start, new.values)
        shared = shared.put(torch.tensor([start % 3]), Shared(new, torch.tensor([0])))
        assert len(shared.table) <= 4  # the three that were read, and the new one
    # Row n was last written in round 6, 7 and 8; the first key of each round is 1000 times its number.
    assert shared.table.select(shared.rows).keys[:, 0, 0, 0].tolist() == [6000, 7000, 8000]


def test_depths_know_which_there_are() -> None:
    roots = Depths.at_roots(torch.tensor([4, 7]))
    assert (roots.each.tolist(), roots.present, roots.deepest) == ([1, 1], (1,), 1)
    both = Depths.cat([roots, roots.after_step().after_step()])
    assert (both.each.tolist(), both.present, both.deepest) == ([1, 1, 3, 3], (1, 3), 3)
    assert both.after_step().present == (2, 4)
    assert both.select(torch.tensor([3, 2])).present == (3,)
    assert both.select(torch.tensor([], dtype=torch.long)).present in ((1,), (3,))
    assert both.put(torch.tensor([0, 1]), both.select(torch.tensor([2, 3]))).present == (3,)
    assert [(depth, rows.tolist()) for depth, rows in both.groups(lambda depth: depth)] == [(1, [0, 1]), (3, [2, 3])]
    assert both.groups(lambda depth: "all") == [(1, None)]
    assert roots.groups(lambda depth: depth) == [(1, None)]
