"""Two processes with half the batch each train as one with all of it (gloo, CPU)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("two_process_training.py")
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    for launcher, batch_size in (([], "8"), (LAUNCHER, "4")):
        command = [sys.executable, *launcher, str(WORKER), str(tmp_path), batch_size]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    alone, together = (torch.load(tmp_path / f"weights_of_{n}.pt") for n in (1, 2))
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        # float32 sums in another order; forgetting the factor of two would halve the heads' steps, of about 1e-3
        torch.testing.assert_close(together[name], weight, rtol=0, atol=2e-6, msg=name)
