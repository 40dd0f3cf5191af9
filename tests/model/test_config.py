"""What a config refuses, and that it survives a file."""

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig

from worldmtp.heads.registry import bind
from worldmtp.model.config import MTPConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "depth=0 must be an integer of at least 1; depth=1 is the trunk alone"),
        ("depth", 2.0, r"depth=2\.0 must be an integer"),
        ("depth", True, "depth=True must be an integer"),
        (
            "concat_order",
            "hidden",
            r"concat_order='hidden' is unknown; did you mean 'hidden_first'\? choose from \['embedding_first'",
        ),
        ("hidden_stage", "middle", r"hidden_stage='middle' is unknown; choose from \['post_norm', 'pre_norm'\]"),
        ("recycle_stage", "none", r"recycle_stage='none' is unknown; choose from \['post_norm', 'pre_norm'\]"),
        ("output_norm", "mine", r"output_norm='mine' is unknown; choose from \['own', 'shared', 'none'\]"),
        ("unembedding", "none", r"unembedding='none' is unknown; choose from \['own', 'shared'\]"),
        ("head_init", "zero", r"head_init='zero' is unknown; choose from \['family', 'random', 'copy_trunk'\]"),
        ("stride", 0, "stride=0 must be an integer of at least 1"),
        ("head_width", True, "head_width=True must be an integer of at least 1"),
        ("head_block", "gpt2", "head_block='gpt2' is unknown"),
        ("num_value_bins", 1, "num_value_bins=1 must be at least 2"),
        ("initializer_range", 0.0, r"initializer_range=0\.0 must be positive"),
        ("value_range", (1.0, 1.0), r"value_range=\(1\.0, 1\.0\) must be \(lowest, highest\)"),
        ("reward_range", (0.0, 1.0, 2.0), "reward_range=.* must be"),
        ("trunk_config", {"hidden_size": 8}, "trunk_config has no 'model_type'; pass trunk.config"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(field, value, message):
    with pytest.raises(ValueError, match=message):
        MTPConfig(**{field: value})


def test_sizes_are_mirrored_from_the_trunk_whatever_it_calls_them():
    config = MTPConfig(trunk_config=GPT2Config(vocab_size=17, n_embd=24).to_dict())
    assert isinstance(config.trunk_config, GPT2Config)
    assert (config.vocab_size, config.hidden_size) == (17, 24)


def test_a_config_survives_its_file(tmp_path):
    written = MTPConfig(
        depth=5,
        share_depths=True,
        concat_order="hidden_first",
        detach_trunk=True,
        value_range=(0.0, 2.0),
        trunk_config=LlamaConfig(
            vocab_size=17, hidden_size=32, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
        ),
    )
    written.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, MTPConfig)
    assert {**read.to_dict(), "_name_or_path": ""} == {**written.to_dict(), "_name_or_path": ""}
    assert read.value_range == (0.0, 2.0)
    assert read.trunk_config.rope_parameters["rope_theta"] == 5e5
    # TRL reads the attribute, and Hugging Face would look for remote code if it were in the file.
    assert read.auto_map == {}
    assert "auto_map" not in (tmp_path / "config.json").read_text()


def test_the_config_hugging_face_asks_about_is_the_trunks():
    trunk_config = LlamaConfig(num_hidden_layers=3)
    assert MTPConfig(trunk_config=trunk_config).get_text_config(decoder=True) is trunk_config


def test_binding_to_a_trunk_leaves_the_users_config_alone():
    config = MTPConfig(depth=3)
    bound = bind(config, LlamaConfig(vocab_size=17, hidden_size=32), "trunk")
    assert (bound.vocab_size, bound.hidden_size, bound.head_block, bound.depth) == (17, 32, "trunk", 3)
    assert (config.vocab_size, config.trunk_config, config.head_block) == (None, None, "auto")


def test_an_unknown_family_is_refused_where_the_heads_are_made():
    message = r"head='sequentail' is unknown; did you mean 'sequential'\? choose from \['blockwise', .*'sequential'\]"
    with pytest.raises(ValueError, match=message):
        bind(MTPConfig(head="sequentail"), LlamaConfig(vocab_size=17, hidden_size=32), "trunk")
