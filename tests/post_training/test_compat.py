"""The seam check fails loudly, naming the version and what is missing."""

import re
import subprocess
import sys

import pytest
import trl

from worldmtp.post_training import check_seams
from worldmtp.post_training.compat import IncompatibleTRLError, Seam


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
