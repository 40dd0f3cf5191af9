"""The published layouts: what a checkpoint is recognised by, what its heads' weights are called, what they mean.

A layout is a description; reading and writing are the same code for all. Weight names hold ``{module}``, the MTP module
counted from 0 (depth 2 is module 0), or ``{layer}``, which goes on counting where the trunk's layers end. Names alone
never tell the order of the projection's input nor which hidden state it was trained on: both are fields here, taken
from code that runs the released weights, and None where such code disagrees. Then the caller says, or it is measured
(``probing``).

Sources:

* DeepSeek-V3 and GLM-4.5: transformers 5.23, ``modeling_layers.MtpLayer``; vLLM, ``deepseek_mtp.py``.
* Qwen3-Next and Qwen3.5: transformers 5.23, conversion mapping of ``MtpModel`` (Mellum has their names); vLLM,
  ``qwen3_next_mtp.py``.
* MiMo-7B: vLLM, ``mimo_mtp.py``, hidden state first. vLLM's ``mimo.py`` hands over the state before the final norm,
  SGLang's the one after it: the stage is left open.
* Gloeckle et al. 2024 (arXiv 2404.19737), facebook/multi-token-prediction: ``layers``, ``extra_heads`` and one norm and
  output for all; parallel, so there is no order.

Left out: layouts whose forward differs from what the ``sequential`` and ``parallel`` families compute (Inkling,
Nemotron-H, LongCat, MiMo-V2), and Mellum, whose layers have rotary embeddings by type.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from worldmtp.choices import check_choice


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Attributes:
        name: what ``layout=`` takes.
        head: the family of heads it holds.
        model_types: ``model_type`` in ``config.json``, or an entry of ``architectures``, it is recognised by.
        trunk_types: ``model_type`` of the trunks it can be written for.
        head_weights: what is told from the trunk's weights by a match; a group is the number of the module or layer.
        names: prefixes of the heads' weights, (ours, theirs); the longest match counts.
        embedding_copy: the copy of the trunk's embedding that is written beside every module, if any.
        concat_order: see ``MTPConfig``; None where it is not known.
        hidden_stage: likewise.
        count_key: key of ``config.json`` with the number of modules, if any.
        max_modules: how many there can be.
    """

    name: str
    head: str
    model_types: tuple[str, ...]
    trunk_types: tuple[str, ...]
    head_weights: str
    names: tuple[tuple[str, str], ...]
    embedding_copy: str | None = None
    concat_order: str | None = None
    hidden_stage: str | None = None
    count_key: str | None = None
    max_modules: int | None = None

    @property
    def counts_layers(self) -> bool:
        """Return whether modules are numbered on from the trunk's layers."""
        return any("{layer}" in theirs for _, theirs in self.names)

    @property
    def is_original_llama(self) -> bool:
        """Return whether the files are Meta's (``params.json``, ``consolidated.pth``) and not Hugging Face's."""
        return not self.model_types

    @property
    def holds_unembedding(self) -> bool:
        """Return whether the file has an output layer beside every module, the trunk's in all released ones."""
        return any(ours.startswith("output.unembeddings.") for ours, _ in self.names)

    def module_of(self, name: str, num_layers: int) -> int | None:
        """Return the module of a weight in the file, None if it is the trunk's; unnumbered weights are module 0's."""
        found = re.match(self.head_weights, name)
        if found is None:
            return None
        number = int(found.group(1) or 0) if found.re.groups else 0
        if not self.counts_layers:
            return number
        return number - num_layers if number >= num_layers else None

    def theirs(self, name: str, num_layers: int) -> str:
        """Return the file's name of a weight of the heads.

        Raises:
            KeyError: the layout has no such weight.
        """
        return _rename(name, self._pairs(name, num_layers, ours=True))

    def ours(self, name: str, num_layers: int) -> str:
        """Return the heads' name of a weight in the file.

        Raises:
            KeyError: the heads have no such weight.
        """
        return _rename(name, self._pairs(name, num_layers, ours=False))

    def copy_of_embedding(self, module: int, num_layers: int) -> str | None:
        """Name of the module's copy of the trunk's embedding, where there is one."""
        return self.embedding_copy and self.embedding_copy.format(module=module, layer=module + num_layers)

    def _pairs(self, name: str, num_layers: int, ours: bool) -> list[tuple[str, str]]:
        found = re.search(r"\.(\d+)\.", name)
        number = int(found.group(1)) if found else 0
        module = number - num_layers if self.counts_layers and not ours else number
        filled = [
            tuple(side.format(module=module, layer=module + num_layers) for side in (mine, other))
            for mine, other in self.names
        ]
        pairs = [(mine, other) if ours else (other, mine) for mine, other in filled]
        return sorted(pairs, key=lambda pair: -len(pair[0]))


def _rename(name: str, pairs: list[tuple[str, str]]) -> str:
    for source, target in pairs:
        if name.startswith(source):
            return target + name.removeprefix(source)
    raise KeyError(name)


_TRAILING_LAYERS = (
    ("layers.{module}.embedding_norm.", "model.layers.{layer}.enorm."),
    ("layers.{module}.hidden_norm.", "model.layers.{layer}.hnorm."),
    ("layers.{module}.projection.", "model.layers.{layer}.eh_proj."),
    ("layers.{module}.block.", "model.layers.{layer}."),
    ("output.norms.{module}.", "model.layers.{layer}.shared_head.norm."),
    ("output.unembeddings.{module}.", "model.layers.{layer}.shared_head.head."),
)
_MTP_PREFIX = (
    ("layers.{module}.embedding_norm.", "mtp.pre_fc_norm_embedding."),
    ("layers.{module}.hidden_norm.", "mtp.pre_fc_norm_hidden."),
    ("layers.{module}.projection.", "mtp.fc."),
    ("layers.{module}.block.", "mtp.layers.{module}."),
    ("output.norms.{module}.", "mtp.norm."),
)
_MIMO = (
    ("layers.{module}.embedding_norm.", "model.mtp_layers.{module}.token_layernorm."),
    ("layers.{module}.hidden_norm.", "model.mtp_layers.{module}.hidden_layernorm."),
    ("layers.{module}.projection.", "model.mtp_layers.{module}.input_proj."),
    ("layers.{module}.block.", "model.mtp_layers.{module}."),
    ("output.norms.{module}.", "model.mtp_layers.{module}.final_layernorm."),
)

_DEEPSEEK_V3 = Layout(
    name="deepseek_v3",
    head="sequential",
    model_types=("deepseek_v3",),
    trunk_types=("deepseek_v3",),
    head_weights=r"model\.layers\.(\d+)\.",
    names=_TRAILING_LAYERS,
    embedding_copy="model.layers.{layer}.embed_tokens.weight",
    concat_order="embedding_first",
    hidden_stage="post_norm",
    count_key="num_nextn_predict_layers",
)
_QWEN3_NEXT = Layout(
    name="qwen3_next",
    head="sequential",
    model_types=("qwen3_next",),
    trunk_types=("qwen3_next",),
    head_weights=r"mtp\.(?:layers\.(\d+)\.)?",
    names=_MTP_PREFIX,
    concat_order="embedding_first",
    hidden_stage="post_norm",
    max_modules=1,
)
_LAYOUTS = {
    layout.name: layout
    for layout in (
        _DEEPSEEK_V3,
        replace(_DEEPSEEK_V3, name="glm4_moe", model_types=("glm4_moe",), trunk_types=("glm4_moe",)),
        _QWEN3_NEXT,
        replace(
            _QWEN3_NEXT,
            name="qwen3_5",
            model_types=("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
            trunk_types=("qwen3_5_text",),
            count_key="mtp_num_hidden_layers",
        ),
        Layout(
            name="mimo",
            head="sequential",
            model_types=("mimo", "MiMoForCausalLM"),
            trunk_types=("qwen2",),
            head_weights=r"model\.mtp_layers\.(\d+)\.",
            names=_MIMO,
            concat_order="hidden_first",
            hidden_stage=None,
            count_key="num_nextn_predict_layers",
        ),
        Layout(
            name="facebook_mtp",
            head="parallel",
            model_types=(),
            trunk_types=("llama",),
            head_weights=r"extra_heads\.(\d+)\.",
            names=(("blocks.{module}.", "extra_heads.{module}."),),
        ),
    )
}


def available_layouts() -> list[str]:
    """Return the names that ``import_checkpoint`` and ``export_checkpoint`` take as ``layout``."""
    return sorted(_LAYOUTS)


def get_layout(name: str) -> Layout:
    """Return the layout of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    check_choice("layout", name, available_layouts())
    return _LAYOUTS[name]


def find_layout(config: Mapping[str, Any]) -> Layout | None:
    """Return the layout that knows a checkpoint by its ``config.json`` (or ``params.json``), if any."""
    if "n_future_tokens" in config:
        return _LAYOUTS["facebook_mtp"]
    marks = [*(config.get("architectures") or []), config.get("model_type")]
    for mark in marks:
        for layout in _LAYOUTS.values():
            if mark in layout.model_types:
                return layout
    return None


def detect_layout(config: Mapping[str, Any]) -> Layout:
    """Return what ``find_layout`` finds.

    Raises:
        ValueError: no layout knows it.
    """
    found = find_layout(config)
    if found is not None:
        return found
    raise ValueError(
        f"no layout is recognised by architectures={config.get('architectures')} or model_type="
        f"{config.get('model_type')!r}; pass layout= one of {available_layouts()} if it is written like one."
    )
