"""Heads of one size: the largest width that fits, found without the search under test."""

import copy

import pytest

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.studies.head_families import matched_width, num_head_parameters


@pytest.fixture(scope="module")
def trunk(tiny_trunk):
    return tiny_trunk("llama", hidden_size=32)


def size_of(trunk, head: str, width: int | None = None) -> int:
    model = MTPModel.from_trunk(copy.deepcopy(trunk), MTPConfig(head=head, depth=3, head_width=width))
    return sum(parameter.numel() for parameter in model.heads.parameters())


@pytest.mark.parametrize("head", ["sequential", "latent", "medusa", "eagle", "linear"])
def test_counted_without_being_made(trunk, head):
    assert num_head_parameters(MTPConfig(head=head, depth=3), trunk) == size_of(trunk, head)


@pytest.mark.parametrize("num_parameters", [20_000, 23_456, 60_000])
def test_matched_width_is_the_last_that_fits(trunk, num_parameters):
    config = MTPConfig(head="latent", depth=3)
    matched = matched_width(config, trunk, num_parameters)
    width = matched.head_width
    assert width % 8 == 0
    assert size_of(trunk, "latent", width) <= num_parameters < size_of(trunk, "latent", width + 8)
    assert config.head_width is None  # what was handed in is as it was


def test_exactly_the_size_asked_for_fits(trunk):
    config = MTPConfig(head="latent", depth=3)
    assert matched_width(config, trunk, size_of(trunk, "latent", 40)).head_width == 40
    assert matched_width(config, trunk, size_of(trunk, "latent", 8)).head_width == 8


def test_a_family_without_a_width_is_left_alone(trunk):
    config = MTPConfig(head="sequential", depth=3)
    assert matched_width(config, trunk, 1) is config


def test_too_few_parameters_are_refused(trunk):
    smallest = size_of(trunk, "latent", 8)
    message = f"num_parameters={smallest - 1} is too few for head='latent', which has {smallest} at its smallest width"
    with pytest.raises(ValueError, match=message):
        matched_width(MTPConfig(head="latent", depth=3), trunk, smallest - 1)
