"""The seam check fails loudly, naming the version and what is missing."""

import re
import runpy
import subprocess
import sys

import pytest
import trl

from worldmtp.post_training import check_seams, compat
from worldmtp.post_training.compat import OWN_ATTRIBUTES, OWN_METHODS, IncompatibleTRLError, Seam, trainer_seams


class Owner:
    def method(self, present):
        """A seam of the test."""


def test_the_installed_version_fits():
    check_seams()


def test_a_missing_callable_and_a_missing_parameter_are_named_with_the_version():
    seams = (Seam(Owner, "gone", ()), Seam(Owner, "method", ("self", "present", "absent")))
    expected = (
        f"does not fit trl {re.escape(trl.__version__)} with transformers .*: Owner.gone is gone; "
        r"Owner.method has no parameter 'absent', only \(self, present\)"
    )
    with pytest.raises(IncompatibleTRLError, match=expected):
        check_seams(seams)


def test_importing_the_package_imports_neither_torch_nor_trl():
    code = "import sys, worldmtp.post_training; print(sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_suggests_the_nearest():
    import worldmtp.post_training

    with pytest.raises(AttributeError, match="no attribute 'MTPFooTrainer'; did you mean 'MTPSFTTrainer'"):
        worldmtp.post_training.MTPFooTrainer  # noqa: B018


@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO", "GRPO", "RLOO"])
def test_each_trainer_checks_its_own_seams_when_it_is_made(make_any, make_model, monkeypatch, kind):
    monkeypatch.setitem(OWN_METHODS, f"{kind}Trainer", {"_gone": ("self",)})
    with pytest.raises(IncompatibleTRLError, match=rf"does not fit trl .*: {kind}Trainer\._gone is gone\. Install"):
        make_any(kind, make_model())


def test_a_constructed_trainer_without_an_attribute_is_refused(make_any, make_model, monkeypatch):
    monkeypatch.setitem(OWN_ATTRIBUTES, "KTOTrainer", ("_no_such",))
    with pytest.raises(IncompatibleTRLError, match="the trainer has no '_no_such'"):
        make_any("KTO", make_model())


def test_a_trainer_that_trl_no_longer_has_is_named(monkeypatch):
    monkeypatch.setitem(OWN_METHODS, "XPOTrainer", {})
    with pytest.raises(IncompatibleTRLError, match=r"trl\.XPOTrainer is gone"):
        trainer_seams("XPOTrainer")


def test_ppo_checks_the_seams_of_the_trainer_it_is_built_on(make_any, make_model, monkeypatch):
    monkeypatch.setitem(OWN_METHODS, "PPOTrainer", {"_gone": ("self",)})
    with pytest.raises(IncompatibleTRLError, match=r"does not fit trl .*: GRPOTrainer\._gone is gone\. Install"):
        make_any("PPO", make_model())


@pytest.mark.filterwarnings("always")
def test_a_name_that_only_trl_can_change_is_not_warned_of(make_model, recwarn):
    assert not make_model().is_gradient_checkpointing
    assert [warning.category for warning in recwarn] == [FutureWarning]  # the fault is there
    recwarn.clear()
    runpy.run_path(compat.__file__)  # a copy, whose filter is what is left of it
    assert not make_model().is_gradient_checkpointing
    assert not recwarn.list
