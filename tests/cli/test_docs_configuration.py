"""``docs/configuration.md`` is made from the dataclasses and the config groups by ``docs/configuration.py``."""

import runpy
from dataclasses import dataclass

import pytest


@pytest.fixture
def script(project_root):
    return runpy.run_path(str(project_root / "docs" / "configuration.py"))


def test_the_page_is_made_from_the_dataclasses(script, project_root):
    page = (project_root / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == script["page"](), "make it again: python docs/configuration.py > docs/configuration.md"


def test_the_page_names_a_key_of_every_depth_with_its_default(project_root):
    """By hand: clip_coef is 0.2 in PPOConfig; ppo.yaml sets 2e-4 where PPOConfig says 3e-4; lambda is 0.3."""
    lines = (project_root / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines()
    for start in (
        "| `seed` | `0` |  |",
        "| `agent.ppo.clip_coef` | `0.2` |  |",
        "| `agent.ppo.learning_rate` | `0.0003` | `0.0002` |",
        "| `agent.rollout.num_iterations` | required | `40` |",
        "| `objective.coef.start` | `0.3` |  |",
        "| `env.id` | required | `worldmtp/ChainSum-v0` |",
    ):
        assert len([line for line in lines if line.startswith(start)]) == 1, start


@dataclass(frozen=True)
class Described:
    """What it is.

    Attributes:
        first: said here,
            over two lines.
        second: not this.
    """

    first: int = 1
    second: int = 2
    """This, which stands
    under it.

    Not this.
    """
    third: int = 3


def test_a_field_is_described_under_it_or_in_the_class(script):
    said = {"first": "said here, over two lines.", "second": "This, which stands under it."}
    assert script["descriptions"](Described) == said


def test_a_field_without_a_description_is_an_error(script):
    with pytest.raises(ValueError, match=r"Described\.third has no description; write one as a string under the field"):
        list(script["_sections"](Described, "", script["OmegaConf"].create({}), set()))
