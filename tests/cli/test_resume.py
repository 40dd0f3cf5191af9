"""What may differ when a run is taken up again, and what a run directory is held to."""

from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from worldmtp.cli.resume import resume_argument, resumed_config
from worldmtp.training.run_dir import claim, is_done, read_config


def plain(node):
    return OmegaConf.to_container(node, resolve=True)


@pytest.fixture
def run_dir(compose_tiny, tmp_path):
    claim(tmp_path / "run", plain(compose_tiny("checkpoint.stop_after=1", "seed=3")), resumes=False).release()
    return tmp_path / "run"


def test_config_of_the_run_with_what_may_differ(run_dir):
    config = resumed_config(
        run_dir, ["agent.rollout.num_iterations=9", "profile.num_threads=2", "imports=[a,b]", "logger.num_strips=1"]
    )
    assert (config.seed, config.env.id) == (3, "worldmtp/Reverse-v0")
    assert config.agent.rollout.num_iterations == 9
    assert config.profile.num_threads == 2
    assert list(config.imports) == ["a", "b"]
    assert config.checkpoint.stop_after is None  # a stop is not repeated


def test_a_new_stop_can_be_given(run_dir):
    assert resumed_config(run_dir, ["checkpoint.stop_after=2"]).checkpoint.stop_after == 2


@pytest.mark.parametrize(
    "override", ["seed=1", "env=copy", "profile=gpu", "importsx=1", "agent.rollout.num_iterationss=1", "--cfg", "-m"]
)
def test_what_would_be_another_run_is_refused(run_dir, override):
    with pytest.raises(ValueError, match=r"goes on with the run as it was, so \['" + override):
        resumed_config(run_dir, [override])


@pytest.mark.parametrize("override", ["profile.num_threads=many", "checkpoint.evry=1", "imports=1"])
def test_overrides_are_held_to_the_schema(run_dir, override):
    with pytest.raises(HydraException, match="Could not override '" + override.partition("=")[0]):
        resumed_config(run_dir, [override])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("checkpoint.every_iterations=010", "checkpoint.every_iterations", 10),  # YAML would say 8
        ("checkpoint.every_iterations=1_0", "checkpoint.every_iterations", 10),
        ("agent.rollout.num_iterations=int(6)", "agent.rollout.num_iterations", 6),
        (r"imports=[./a\ b.py]", "imports", ["./a b.py"]),
        ("imports=['a b','c']", "imports", ["a b", "c"]),
        ("+imports=[a]", "imports", ["a"]),
        ("++checkpoint.keep_last=5", "checkpoint.keep_last", 5),
        ("checkpoint={keep_last:3}", "checkpoint.keep_last", 3),
        ("+checkpoint={keep_last:3}", "checkpoint.keep_last", 3),
        ("profile={num_threads:2}", "profile.num_threads", 2),
        ("profile.device='cuda:0'", "profile.device", "cuda:0"),
        ("profile.device=cuda:0", "profile.device", "cuda:0"),
        ("logger.tensorboard=true", "logger.tensorboard", True),
        ("logger.tensorboard=on", "logger.tensorboard", True),
        ("checkpoint.stop_after=null", "checkpoint.stop_after", None),
        ("profile.num_jobs=${profile.num_threads}", "profile.num_jobs", 1),
    ],
)
def test_an_override_means_what_it_means_for_a_new_run(run_dir, compose_tiny, override, key, value):
    resumed, fresh = resumed_config(run_dir, [override]), compose_tiny("seed=3", override)
    assert OmegaConf.select(resumed, key) == value
    assert OmegaConf.to_container(resumed, resolve=True) == OmegaConf.to_container(fresh, resolve=True)


@pytest.mark.parametrize(
    "override",
    [
        "checkpoint.every_iterations=0x2",
        "checkpoint.every_iterations=2.5",
        "imports=[./x.py",
        "imports=[a,b",
        "imports=[a]]",
        "+checkpoint.keep_last=5",
        "checkpoint.keep_last",
        "logger.tensorboard=3.7",
    ],
)
def test_an_override_that_a_new_run_refuses_is_refused(run_dir, compose_tiny, override):
    with pytest.raises(HydraException):
        compose_tiny(override)
    with pytest.raises((HydraException, ValueError)):
        resumed_config(run_dir, [override])


@pytest.mark.parametrize("override", ["~imports", "checkpoint.keep_last=2,3", "checkpoint.keep_last=range(1,3)"])
def test_deletions_and_sweeps_are_refused(run_dir, override):
    with pytest.raises(ValueError, match="goes on with the run as it was"):
        resumed_config(run_dir, [override])


def test_there_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.yaml there; give the directory of a run"):
        resumed_config(tmp_path / "nowhere", [])


def test_a_run_that_is_done(run_dir):
    (run_dir / "DONE").touch()
    assert is_done(run_dir)
    with pytest.raises(ValueError, match=r"this run is done; raise agent\.rollout\.num_iterations to go further"):
        resumed_config(run_dir, [])
    assert resumed_config(run_dir, ["agent.rollout.num_iterations=9"]).agent.rollout.num_iterations == 9


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_the_argument_is_found_among_others(plus):
    assert resume_argument(["seed=1", f"{plus}resume=runs/a=b", "+imports=[a]"]) == (
        Path("runs/a=b"),
        ["seed=1", "+imports=[a]"],
    )


@pytest.mark.parametrize("arguments", [["seed=1"], ["resume=null"], ["resume="], []])
def test_no_argument(arguments):
    assert resume_argument(arguments) is None


def test_a_claim_is_whole_or_not_at_all(run_dir, compose_tiny, monkeypatch):
    before = (run_dir / "config.yaml").read_text()

    def dies(*args):
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("worldmtp.training.run_dir.os.replace", dies)
        with pytest.raises(MemoryError), claim(run_dir, plain(compose_tiny("seed=4")), resumes=True) as claimed:
            claimed.keep()
    assert (run_dir / "config.yaml").read_text() == before
    with claim(run_dir, plain(compose_tiny("seed=4")), resumes=True) as claimed:
        claimed.keep()
    assert OmegaConf.load(run_dir / "config.yaml").seed == 4


def test_the_jobs_of_a_sweep_are_named(compose_tiny, tmp_path):
    for seed in (3, 4):
        claim(tmp_path / f"job{seed}", plain(compose_tiny(f"seed={seed}")), resumes=False).release()
    (tmp_path / "job4" / "config.yaml").write_text("env: [")
    message = rf"resume={tmp_path} is the directory of a sweep; go on with one of its jobs:\n\n(.|\n)*{tmp_path}/job3\n"
    with pytest.raises(ValueError, match=message) as refused:
        resumed_config(tmp_path, [])
    (damaged,) = [line for line in str(refused.value).splitlines() if "job4" in line]
    assert "damaged" in damaged
    with pytest.raises(ValueError, match=r"job4/config\.yaml is damaged: (.|\n)*; put back the file"):
        resumed_config(tmp_path / "job4", [])


def test_an_old_run_goes_on_as_it_began(run_dir):
    """Its config lacks later settings, of which it did without the tail and had one rate for all heads."""
    assert resumed_config(run_dir, []).imagination.tail is True
    path = run_dir / "config.yaml"
    saved = OmegaConf.load(path)
    del saved.imagination["tail"]
    saved.world_model = {"learning_rate": 0.002, "ce_coef": 0.7, "num_updates": 3}
    OmegaConf.save(saved, path)
    for resumed in (resumed_config(run_dir, []), read_config(run_dir)):
        assert resumed.imagination.tail is False
        world = resumed.world_model
        assert (world.learning_rate, world.world_heads_learning_rate, world.warmup_updates) == (0.002, 0.002, 0)
        assert (world.ce_coef, world.kl_coef, world.detach_world_heads, world.num_updates) == (0.7, 0.0, False, 3)
