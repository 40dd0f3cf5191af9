"""No training step makes the host wait for what the heads add: what they log is read at the next log."""

import pytest
import trl

from worldmtp.tracking.late_numbers import HostCopy

# How many targets there are at which losses are computed, once for all depths, and which rows have any; and the few
# labels that may be a first guess, not on CUDA.
BY_DESIGN = {
    "worldmtp.objective.fused._valid_rows: tolist",
    "worldmtp.objective.token_losses.top1_hits: nonzero",
}
OF_ROWS = {f"worldmtp.post_training.forward._run: {read}" for read in ("__bool__", "_local_scalar_dense", "nonzero")}


@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO", "PPO"])
def test_a_training_step_reads_what_trl_reads(make_any, make_model, host_reads, kind):
    options = {"max_steps": 2, "logging_steps": 2, "gradient_accumulation_steps": 2}
    trainer = make_any(kind, make_model(), **options)
    found, step = [], trainer.compute_loss

    def watched(*args, **kwargs):
        with host_reads() as reads:
            loss = step(*args, **kwargs)
        found.append(list(reads))
        return loss

    trainer.compute_loss = watched
    trainer.train()
    assert len(found) == 4
    assert {read for reads in found for read in reads} <= BY_DESIGN | (OF_ROWS if kind == "DPO" else set())


def test_a_loss_that_is_known_too_late_reaches_no_weight(make_any, make_model, monkeypatch):
    """As on an accelerator, the second step's is read at the log after the third."""
    monkeypatch.setattr(HostCopy, "has_arrived", False)
    compute, losses = trl.SFTTrainer.compute_loss, []

    def broken(self, *args, **kwargs):
        result = compute(self, *args, **kwargs)
        losses.append(result)
        return result * float("nan") if len(losses) == 2 else result

    trainer = make_any("SFT", make_model(), max_steps=3, logging_steps=3, gradient_accumulation_steps=1)
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", broken)
    with pytest.raises(FloatingPointError, match=r"Non-finite loss at step 2: term loss=nan"):
        trainer.train()
    assert len(losses) == 3
    assert [name for name, weight in trainer.model.named_parameters() if not bool(weight.isfinite().all())] == []
