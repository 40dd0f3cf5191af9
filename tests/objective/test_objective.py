"""The objective as a whole: dicts there and back, presets against their papers, every file of the config group."""

import json
from dataclasses import FrozenInstanceError
from importlib import resources

import pytest
import yaml

from worldmtp.objective import MTPObjective
from worldmtp.objective.fused import LossTerms
from worldmtp.objective.plan import DepthWindow, Progress

FILES = {
    entry.name.removesuffix(".yaml"): entry
    for entry in resources.files("worldmtp.configs.objective").iterdir()
    if entry.name.endswith(".yaml")
}


PAPERS = ("bebop", "blockwise", "deepseek_v3", "fastmtp", "gloeckle", "medusa", "nextlat")


def preset(name):
    return MTPObjective.from_dict(load(name))


def load(name):
    return yaml.safe_load(FILES[name].read_text(encoding="utf-8"))


def test_default_is_deepseeks_first_lambda():
    objective = MTPObjective()
    plan = objective.plan(4, Progress(0), seed=0)
    assert plan.coef == 0.3
    assert plan.weights == pytest.approx([1 / 3] * 3)
    assert objective.terms == LossTerms(ce=1.0)
    assert not objective.needs_teacher
    assert not objective.needs_ema


@pytest.mark.parametrize("name", [*PAPERS, "default"])
def test_round_trip_through_json(name):
    objective = MTPObjective() if name == "default" else preset(name)
    text = json.dumps(objective.to_dict(), allow_nan=False)
    assert MTPObjective.from_dict(json.loads(text)) == objective
    assert json.dumps(MTPObjective.from_dict(json.loads(text)).to_dict()) == text


def test_plain_dict_by_hand():
    values = MTPObjective(window=DepthWindow(last=3)).to_dict()
    assert values["window"] == {
        "first": 2,
        "last": 3,
        "curriculum": "none",
        "curriculum_begin": 0.0,
        "curriculum_end": 1.0,
    }
    assert type(values["terms"]) is dict
    assert MTPObjective.from_dict({"window": {"last": 3}}) == MTPObjective(window=DepthWindow(last=3))
    assert MTPObjective.from_dict({}) == MTPObjective()


def test_integers_serve_as_numbers():
    objective = MTPObjective.from_dict({"terms": {"ce": 0, "kl": 1}, "coef": {"start": 1}})
    assert objective.terms == LossTerms(ce=0.0, kl=1.0)
    assert isinstance(objective.coef.start, float)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"term": {}}, ValueError, r"a key of the objective='term' is unknown; did you mean 'terms'\?"),
        ({"coef": {"strat": 1.0}}, ValueError, r"a key of coef='strat' is unknown; did you mean 'start'\?"),
        ({"frequency": {"every": 2}}, ValueError, r"a key of frequency='every' is unknown; .*'every_steps'"),
        ({"coef": 0.3}, TypeError, r"coef is 0\.3; give a mapping of CoefSchedule's fields"),
        (
            {"coef": {"begin": "1e13"}},
            TypeError,
            r"coef\.begin='1e13' is a str; it must be float; YAML reads .*1\.0e\+13",
        ),
        ({"coef": {"start": True}}, TypeError, r"coef\.start=True is a bool; it must be float"),
        ({"coef": {"end": "x"}}, TypeError, r"coef\.end='x' is a str; it must be float or null"),
        ({"chunk_size": 1.5}, TypeError, r"chunk_size=1\.5 is a float; it must be int\.$"),
        ({"window": {"last": True}}, TypeError, r"window\.last=True is a bool; it must be int or null"),
        ({"detach_teacher": 1}, TypeError, r"detach_teacher=1 is a int; it must be bool"),
        ({"frequency": {"one_random_depth": None}}, TypeError, r"one_random_depth=None is a NoneType; it must be bool"),
    ],
)
def test_from_dict_refuses(values, error, message):
    with pytest.raises(error, match=message):
        MTPObjective.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth_weighting": "means"}, r"depth_weighting='means' is unknown; did you mean 'mean'\?"),
        ({"latent_target": "trunks"}, r"latent_target='trunks' is unknown; did you mean 'trunk'\?"),
        ({"terms": {"kl": -1.0}}, r"terms\.kl=-1\.0 must be finite and not negative"),
        ({"terms": {"ce": 0.0}}, r"all terms are 0.*coef\.start=0 turns their loss off"),
        ({"ema_decay": 1.0}, r"ema_decay=1\.0 must lie in \[0, 1\)"),
        ({"latent_target": "ema"}, r"latent_target='ema' makes a teacher that no term asks for"),
        (
            {"latent_target": "ema", "terms": {"latent": 1.0}, "detach_teacher": False},
            r"detach_teacher=False: a moving average takes no gradient",
        ),
        ({"chunk_size": 0}, r"chunk_size=0 must be at least 1 token"),
        (
            {"terms": {"e2e_tv": 1.0}, "frequency": {"one_random_depth": True}},
            r"terms\.e2e_tv multiplies the acceptances",
        ),
        ({"terms": {"e2e_tv": 1.0}, "window": {"first": 3}}, r"nor a window\.first beyond 2; use terms\.tv"),
    ],
)
def test_values_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        MTPObjective.from_dict(values)


@pytest.mark.parametrize(
    ("term", "needed"),
    [("ce", False), ("kl", True), ("tv", True), ("e2e_tv", True), ("latent", True), ("nla", True), ("lk_hybrid", True)],
)
def test_teacher_is_needed_by_all_but_cross_entropy(term, needed):
    terms = LossTerms(**{"ce": 0.0, term: 1.0})
    assert MTPObjective(terms=terms).needs_teacher is needed


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        MTPObjective().chunk_size = 1


# What the papers say: coefficient times weight of each depth of four, from the papers' own numbers.
@pytest.mark.parametrize(
    ("name", "effective", "terms"),
    [
        ("deepseek_v3", [0.1, 0.1, 0.1], {"ce": 1.0}),  # 0.3 / 3
        ("gloeckle", [1.0, 1.0, 1.0], {"ce": 1.0}),
        ("medusa", [0.16, 0.128, 0.1024], {"ce": 1.0}),  # 0.2 times 0.8, 0.64, 0.512
        ("fastmtp", [25 / 49, 15 / 49, 9 / 49], {"ce": 1.0}),
        ("nextlat", [1 / 3, 1 / 3, 1 / 3], {"ce": 0.0, "kl": 1.0, "latent": 1.0}),
        ("bebop", [1.0, 1.0, 1.0], {"ce": 0.0, "e2e_tv": 1.0}),
    ],
)
def test_presets_by_hand(name, effective, terms):
    objective = preset(name)
    plan = objective.plan(4, Progress(0), seed=0)
    assert [plan.coef * weight for weight in plan.weights] == pytest.approx(effective)
    assert objective.terms == LossTerms(**terms)


def test_blockwise_draws_one_depth():
    plans = [preset("blockwise").plan(4, Progress(step), seed=0) for step in range(30)]
    assert {plan.weights for plan in plans} == {(3.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 3.0)}  # missed: 2e-5


# The config group


@pytest.mark.parametrize("name", sorted(FILES))
def test_file_loads_and_says_its_source(name):
    objective = MTPObjective.from_dict(load(name))
    assert MTPObjective.from_dict(objective.to_dict()) == objective
    assert FILES[name].read_text(encoding="utf-8").startswith("# ")
    objective.plan(4, Progress(0, 10), seed=0)


def test_the_files_are_the_default_and_what_papers_train_by():
    assert {*FILES} == {*PAPERS, "default"}
    assert MTPObjective.from_dict(load("default")) == MTPObjective()
