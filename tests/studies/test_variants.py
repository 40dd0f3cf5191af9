"""What is wrong in a variant is told before anything is trained."""

from types import SimpleNamespace

import pytest

from worldmtp.studies.protocol import Arm
from worldmtp.studies.variants import VariantStudy, check_variants


def test_all_variants_of_a_seed_come_before_the_next_seed():
    study = VariantStudy(SimpleNamespace(variants={"a": {}, "b": {}}, seeds=[3, 1]))
    assert study.arms() == [Arm("a", 3), Arm("b", 3), Arm("a", 1), Arm("b", 1)]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"head": "latent", "spec": {"head_widht": 3}}, "head_widht.*head_width"),
        ({"head": "latent", "spec": {"depth": 3}}, "depth"),
        ({"head": "latent", "objective": {"terms": {"latent": 1.0}, "latent_target": "ema"}}, "no moving average"),
        ({"head": "latent", "objective": {"window": {"last": 9}}}, "reaches beyond the model's 4 depths"),
        (None, "variants.a is given as None"),
        ("latent", "variants.a is given as 'latent'"),
    ],
)
def test_a_wrong_variant_is_refused(variant, message):
    with pytest.raises(ValueError, match=message):
        check_variants({"a": variant}, [0], depth=4)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="variants is empty"):
        check_variants({}, [0])
    with pytest.raises(ValueError, match="seeds is empty"):
        check_variants({"a": {"depth": 1}}, [])
