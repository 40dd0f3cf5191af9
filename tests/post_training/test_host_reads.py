"""No training step makes the host wait for what the heads add: what they log is read at the next log."""

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

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
