"""Two processes with half the batch each train as one with all of it (gloo, CPU), whole or sharded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("two_process_training.py")
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
KINDS = ("SFT", "DPO", "KTO", "GRPO", "RLOO", "PPO")
OTHERWISE = ("time", "runtime", "per_second", "total_flos", "gradient_cosine")
"""By the clock, a guess that counts padding, and a mean over micro-batches, of which two processes have two."""


def train(launcher, *arguments):
    command = [sys.executable, *launcher, str(WORKER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def trained(launcher, *arguments):
    done = train(launcher, *arguments)
    assert done.returncode == 0, done.stderr[-4000:]


def logged(result, without=()):
    left_out = (*OTHERWISE, *without)
    return [{name: value for name, value in record.items() if not name.endswith(left_out)} for record in result["log"]]


def assert_same_training(result, expected, without=()):
    assert result["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=0, atol=1e-6, msg=name)
    ours, theirs = logged(result, without), logged(expected, without)
    assert len(ours) == len(theirs) == 6
    assert {"loss", "mtp/loss_depth_2", "mtp/loss_depth_3"} <= theirs[0].keys()
    for record, other in zip(ours, theirs, strict=True):
        assert record == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Every number that is logged, the losses, and all weights after five steps."""
    trained([], tmp_path, 8, ",".join(KINDS), 0.5)
    trained(LAUNCHER, tmp_path, 4, ",".join(KINDS), 0.5)
    for kind in KINDS:
        alone, together = (torch.load(tmp_path / f"{kind}_{n}.pt") for n in (1, 2))
        assert_same_training(together, alone)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_equal_one(tmp_path):
    """FSDP2, without clipping, which takes all weights together there; the norm is then of heads and trunk."""
    trained([], tmp_path, 8, ",".join(KINDS), 0.0)
    trained(LAUNCHER, tmp_path, 4, ",".join(KINDS), 0.0, "sharded")
    for kind in KINDS:
        alone, sharded = (torch.load(tmp_path / f"{kind}_{n}.pt") for n in (1, "sharded"))
        assert_same_training(sharded, alone, without=["grad_norm"])


@pytest.mark.slow
def test_weights_that_accelerate_would_not_shard_are_refused(tmp_path):
    done = train(LAUNCHER, tmp_path, 4, "SFT", 0.0, "refused")
    assert done.returncode != 0
    assert "ValueError: fsdp=True and accelerate shards nothing on CPUs" in done.stderr
