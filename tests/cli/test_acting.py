"""Acting by search in a run: what a config gets wrong is said before anything is trained."""

import pytest

from worldmtp.cli.train import run

pytestmark = pytest.mark.usefixtures("no_report")

REFUSED = [
    (r"eval: eval\.act='serch' is unknown; did you mean 'search'\?", "eval.act=serch"),
    (r"search: search\.rule='gumbell' is unknown; did you mean 'gumbel'\?", "search.rule=gumbell"),
    (r"search: search\.dynamics='orcale' is unknown; did you mean 'oracle'\?", "search.dynamics=orcale"),
    (r"search\.tree: num_simulations=0 must be at least 1", "search.tree.num_simulations=0"),
    (
        r"eval\.act=search with search\.dynamics=mtp reads the heads of reward .* imagination=off never trains; set "
        r"imagination=counterfactual, which does, or eval\.act=policy\.$",
        *("eval.act=search", "imagination=off"),
    ),
    (
        r"eval\.act=search, by search\.dynamics=mtp: max_depth=4 is beyond the world model, which takes 3 steps",
        *("eval.act=search", "search.tree.max_depth=4"),
    ),
    (
        r"bootstrap_truncated=True with eval\.act=search",
        *("eval.act=search", "imagination=latent", "agent.ppo.bootstrap_truncated=true"),
    ),
    (
        r"eval\.act=search, by search\.dynamics=world: Reverse has no world that replies",
        *("eval.act=search", "search.dynamics=world"),
    ),
]


@pytest.mark.parametrize(("message", "overrides"), [(first, rest) for first, *rest in REFUSED])
def test_refused(message, overrides, compose_tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(compose_tiny(*overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "sft").exists()
