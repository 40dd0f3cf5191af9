"""The comparison finds what it is for, and nothing was left out of the recorded runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.heads import available_heads

Golden = Callable[..., None]
Trace = dict[str, Any]
FOLDER = Path(__file__).parent


@pytest.fixture(autouse=True)
def _recording_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WRITE_GOLDEN", raising=False)


@pytest.fixture
def trace() -> Trace:
    return json.loads((FOLDER / "ppo" / "off.json").read_text(encoding="utf-8"))


def test_rounding_is_let_pass(golden: Golden, trace: Trace) -> None:
    golden("ppo", "off", trace)
    trace["losses/total"][2] += 5e-13
    golden("ppo", "off", trace)


def test_a_norm_is_not_rounded_to_float32(drawn_trunk: Callable[..., Any]) -> None:
    """Where it is, equal runs of two processors differ by 1e-8 now and then, and no comparison to 1e-12 is one."""
    norm = drawn_trunk(8).model.norm
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 16)))
    scale = (values.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    torch.testing.assert_close(norm(values), norm.weight * values * scale, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda trace: trace["losses/total"].__setitem__(2, trace["losses/total"][2] + 3e-12),
            r"total \[2\] was .* and is",
        ),
        (lambda trace: trace["losses/total"].__setitem__(0, float("nan")), r"losses/total \[0\] was .* and is nan"),
        (lambda trace: trace["losses/total"].__setitem__(0, None), r"losses/total \[0\] was .* and is None"),
        (lambda trace: trace["env/episodes"].__setitem__(1, 32), r"env/episodes \[1\] was 32\.0 and is 32"),
        (lambda trace: trace["losses/total"].pop(), r"losses/total was \[.*\] and is \["),
        (lambda trace: trace["actions"][0].__setitem__(0, "2"), r"actions \[0\] \[0\] was '\d+' and is '2'"),
        (lambda trace: trace.update({"losses/other": [0.0]}), "losses/other is new"),
        (lambda trace: trace.pop("losses/kl_reference"), "losses/kl_reference is missing"),
    ],
    ids=["value", "nan", "none", "kind of number", "length", "text", "new", "missing"],
)
def test_a_difference_is_found(golden: Golden, trace: Trace, change: Callable[[Trace], Any], message: str) -> None:
    change(trace)
    with pytest.raises(AssertionError, match=rf"ppo/off\.json: .*{message}.*CHANGELOG\.md under Numerics"):
        golden("ppo", "off", trace)


def test_a_run_without_a_record_is_refused(golden: Golden, trace: Trace) -> None:
    with pytest.raises(AssertionError, match=r"ppo/no_such_case\.json was never recorded: WRITE_GOLDEN=1"):
        golden("ppo", "no_such_case", trace)


def test_every_family_of_heads_is_recorded() -> None:
    recorded = {path.stem for path in (FOLDER / "sft").glob("*.json")}
    assert set(available_heads()) <= recorded


def test_every_option_of_imagination_is_recorded(project_root: Path) -> None:
    uses = {path.stem for path in (project_root / "configs" / "imagination").glob("*.yaml")}
    assert uses == {path.stem.split("_")[0] for path in (FOLDER / "ppo").iterdir()}
