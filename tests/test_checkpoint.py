"""Checkpoints: round trip, atomicity, corruption, and generators."""

import errno
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmtp import atomic_files
from worldmtp.checkpoint import (
    CheckpointError,
    capture_rng,
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    restore_rng,
    save_checkpoint,
)


def test_round_trip_of_every_admitted_type(tmp_path):
    payload = {
        "tensor": torch.tensor([[1.5, float("nan")], [float("-inf"), 0.1]], dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.array([[1, 2**63]], dtype=np.uint64),
        "empty_array": np.zeros((0, 3), dtype=np.float32),
        "bytes": b"\x00\xff",
        "empty_bytes": b"",
        "nested": [1, (2.5, None, True), {"deeper": "text"}],
        "large_integer": 2**127 + 3,
        "numpy_scalar": np.float64(0.5),
        "optimizer": OrderedDict(state={0: {"step": torch.tensor(3.0)}}),
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, 7, payload))
    assert set(loaded) == set(payload)
    assert torch.equal(loaded["tensor"].view(torch.int16), payload["tensor"].view(torch.int16))
    assert torch.equal(loaded["parameter"], torch.ones(2))
    assert not loaded["parameter"].requires_grad
    assert loaded["array"].dtype == np.uint64
    assert loaded["array"].tolist() == [[1, 2**63]]
    loaded["array"][0, 0] = 5  # writable, as it was
    assert loaded["empty_array"].shape == (0, 3)
    assert loaded["bytes"] == b"\x00\xff"
    assert loaded["empty_bytes"] == b""
    assert loaded["nested"] == [1, (2.5, None, True), {"deeper": "text"}]
    assert loaded["large_integer"] == 2**127 + 3
    assert loaded["numpy_scalar"] == 0.5
    assert loaded["optimizer"]["state"][0]["step"].item() == 3.0


def test_an_optimizer_resumes_bit_for_bit(tmp_path):
    def make():
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        return weight, torch.optim.AdamW([weight], lr=0.1)

    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight**3).sum().backward()
        optimizer.step()

    weight, optimizer = make()
    step(weight, optimizer)
    path = save_checkpoint(tmp_path, 1, {"weight": weight, "optimizer": optimizer.state_dict()})
    step(weight, optimizer)

    other_weight, other_optimizer = make()
    loaded = load_checkpoint(path)
    other_weight.data.copy_(loaded["weight"])
    other_optimizer.load_state_dict(loaded["optimizer"])
    step(other_weight, other_optimizer)
    assert torch.equal(weight, other_weight)


def test_the_newest_checkpoints_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for step in [1, 20, 3, 100]:
        save_checkpoint(tmp_path, step, {"step": step}, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000000020.pt",
        "checkpoint-000000000100.pt",
        "notes.txt",
    ]
    latest = latest_checkpoint(tmp_path)
    assert checkpoint_step(latest) == 100
    assert load_checkpoint(latest) == {"step": 100}


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [7]), (2, [7, 90]), (3, [7, 50, 90]), (5, [1, 3, 7, 50, 90])])
def test_the_checkpoint_just_written_stays_though_others_have_higher_steps(tmp_path, keep_last, kept):
    """Step 7 is written beside steps 50 and 90 of a run that went further."""
    for step in [1, 3, 50, 90]:
        save_checkpoint(tmp_path, step, {"step": step}, keep_last=9)
    path = save_checkpoint(tmp_path, 7, {"step": 7}, keep_last)
    assert load_checkpoint(path) == {"step": 7}
    assert sorted(map(checkpoint_step, tmp_path.iterdir())) == kept


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named_with_the_previous_good_one(tmp_path, damage):
    good = save_checkpoint(tmp_path, 1, {"weight": torch.ones(100)})
    bad = save_checkpoint(tmp_path, 2, {"weight": torch.ones(100)})
    content = bytearray(bad.read_bytes())
    if damage == "truncate":
        content = content[:-10]
    elif damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"PK" + bytes(200))
    bad.write_bytes(content)
    pattern = f"{re.escape(str(bad))} is corrupt: .*newest intact checkpoint is {re.escape(str(good))} \\(step 1\\)"
    with pytest.raises(CheckpointError, match=pattern):
        load_checkpoint(bad)
    good.unlink()
    with pytest.raises(CheckpointError, match=r"There is no intact checkpoint in that directory"):
        load_checkpoint(bad)


def test_the_checkpoint_to_fall_back_on_is_intact_itself(tmp_path):
    good, damaged, bad = (save_checkpoint(tmp_path, step, {"step": step}, keep_last=3) for step in (1, 2, 3))
    for path in (damaged, bad):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=rf"newest intact checkpoint is {re.escape(str(good))} \(step 1\)"):
        load_checkpoint(bad)
    with pytest.raises(CheckpointError, match=rf"newest intact checkpoint is {re.escape(str(good))} \(step 1\)"):
        load_checkpoint(tmp_path / "checkpoint-000000000009.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    good = save_checkpoint(tmp_path, 1, {})
    missing = tmp_path / "checkpoint-000000000009.pt"
    with pytest.raises(CheckpointError, match=rf"No checkpoint at {re.escape(str(missing))}.*{re.escape(str(good))}"):
        load_checkpoint(missing)
    with pytest.raises(ValueError, match=r"'best.pt' is not a checkpoint's name"):
        checkpoint_step(Path("best.pt"))


class _FullDisk:
    """A file on a disk with room for ``room`` bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [10, 500, 100_000])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, room):
    old = save_checkpoint(tmp_path, 1, {"weight": torch.zeros(3)})
    really_open = Path.open
    with monkeypatch.context() as patched:
        patched.setattr(
            Path,
            "open",
            lambda path, mode="r": (
                _FullDisk(really_open(path, mode), room) if mode == "wb" else really_open(path, mode)
            ),
        )
        with pytest.raises(
            CheckpointError,
            match=rf"step 2 to {re.escape(str(tmp_path))}: .*No space left on device.*intact checkpoint is .*step 1",
        ):
            save_checkpoint(tmp_path, 2, {"weight": torch.zeros(100_000)})
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert torch.equal(load_checkpoint(old)["weight"], torch.zeros(3))


def test_an_unwritable_directory_is_a_clear_error(tmp_path, monkeypatch):
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    with pytest.raises(CheckpointError, match=r"Could not write the checkpoint of step 3 .*no intact checkpoint"):
        save_checkpoint(occupied, 3, {})

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic_files.os, "replace", refuse)
    with pytest.raises(CheckpointError, match=r"Permission denied.*choose another directory"):
        save_checkpoint(tmp_path, 3, {})


def test_a_kill_before_the_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    old = save_checkpoint(tmp_path, 1, {"value": 1})

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "replace", kill)
        # A real kill runs no clean-up either.
        patched.setattr(atomic_files, "_remove", lambda path: None)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 2, {"value": 2})
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path) == old
    save_checkpoint(tmp_path, 2, {"value": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == [old.name, "checkpoint-000000000002.pt"]


def test_foreign_types_are_refused_with_their_place(tmp_path):
    with pytest.raises(TypeError, match=r"payload\['a'\]\[1\]\['b'\] is a builtins.set"):
        save_checkpoint(tmp_path, 1, {"a": [0, {"b": {1, 2}}]})
    with pytest.raises(TypeError, match=r"payload has the key \(1, 2\); keys are str or int"):
        save_checkpoint(tmp_path, 1, {"a": {}, (1, 2): 3})
    with pytest.raises(TypeError, match=r"numpy array of objects"):
        save_checkpoint(tmp_path, 1, {"a": np.array([None])})
    with pytest.raises(ValueError, match=r"keep_last=0"):
        save_checkpoint(tmp_path, 1, {}, keep_last=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bit_generator", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_generators_continue_where_they_were(tmp_path, bit_generator):
    generators = {
        "rollout": torch.Generator().manual_seed(1),
        "env": np.random.Generator(bit_generator(2)),
    }
    torch.rand(3, generator=generators["rollout"])
    generators["env"].integers(5, size=3)
    path = save_checkpoint(tmp_path, 0, {"rng": capture_rng(generators)})
    expected_torch = torch.rand(4, generator=generators["rollout"])
    expected_numpy = generators["env"].random(4)

    fresh = {"rollout": torch.Generator(), "env": np.random.Generator(bit_generator(0))}
    restore_rng(fresh, load_checkpoint(path)["rng"])
    assert torch.equal(torch.rand(4, generator=fresh["rollout"]), expected_torch)
    assert np.array_equal(fresh["env"].random(4), expected_numpy)


def test_states_of_other_generators_are_refused():
    states = capture_rng({"a": torch.Generator(), "b": np.random.default_rng(0)})
    with pytest.raises(ValueError, match=r"missing \['c'\], unknown \['b'\]"):
        restore_rng({"a": torch.Generator(), "c": torch.Generator()}, states)
    with pytest.raises(ValueError, match=r"state of generator 'b' is a dict, which does not belong to a .*Generator"):
        restore_rng({"a": torch.Generator(), "b": torch.Generator()}, states)
