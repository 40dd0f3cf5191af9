"""``docs/post_training.md``: its Python blocks run one after another as they stand, and its names exist."""

import re

import pytest

import worldmtp.post_training
from worldmtp.post_training.compat import OWN_METHODS, TRAINER_METHODS

pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using 'rollout_func', which is an experimental feature",
)


@pytest.fixture
def page(project_root):
    return (project_root / "docs" / "post_training.md").read_text(encoding="utf-8")


def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/post_training.md, block {number}", "exec"), names)
    assert names["again"].config.depth == 3


def test_the_table_names_every_trainer_and_every_override(page):
    trainers = {name for name in dir(worldmtp.post_training) if name.startswith("MTP") and name.endswith("Trainer")}
    assert set(re.findall(r"^\| `(MTP\w+)`", page, flags=re.MULTILINE)) == trainers
    methods = {"compute_loss", "_compute_kl_logps", "_get_num_items_in_batch", "_clip_grad_norm"}
    assert methods <= TRAINER_METHODS.keys() | OWN_METHODS["KTOTrainer"].keys()
    assert all(f"`{name}`" in page for name in methods)
