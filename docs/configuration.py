"""Write ``configuration.md``: every key of a training run, its default and what it does, read from the dataclasses.

    python docs/configuration.py > docs/configuration.md

A field is described by the string under it, by the ``Attributes`` of its class, or, for the spec of the heads, by those
of ``MTPConfig``. A field that none of them describes is an error: describe it beside the class.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

import worldmtp.configs
from worldmtp import MTPConfig
from worldmtp.cli.options import generated_options
from worldmtp.cli.schema import register
from worldmtp.heads.registry import head_class
from worldmtp.training import TrainConfig
from worldmtp.training.config import HeadSpecConfig, ModelConfig

_HEAD = """\
# Configuration

Made by `docs/configuration.py` from the dataclasses; a test keeps the two equal.

On the command line a key is written `agent.ppo.learning_rate=1e-4`; a key that a mapping does not have yet, such as a
keyword of your environment, is added with a plus: `+env.kwargs.max_turn=4`. In Python the same names are nested
dataclasses of [`worldmtp.training`](python.md). *Default* is the dataclass's. *Command line* is what `worldmtp train`
sets without an argument, where that is something else.

## Groups

`group=option` sets several keys at once. `worldmtp train --help` lists the options, and
`worldmtp train --cfg job ...` shows what they come to and stops.
"""

_ELSEWHERE = {
    "agent.rollout.num_iterations": "Iterations of acting, learning and imagining.",
    "agent.rollout.num_prompts": "Prompts an iteration.",
    "agent.rollout.group_size": "Answers to each prompt.",
    "agent.rollout.temperature": "Temperature the policy acts at.",
    "agent.rollout.num_draft": "Tokens drafted a round; None is all that the heads can.",
    "agent.ppo.learning_rate": "AdamW's, after its warm-up.",
    "agent.ppo.gamma": "Discount a token; 1 does not pay for brevity.",
    "agent.ppo.clip_coef": "Half the width of the range in which the probability ratio has a gradient.",
    "agent.ppo.vf_coef": "Coefficient of the value loss.",
    "agent.ppo.ent_coef": "Coefficient of the entropy, which is added.",
    "agent.ppo.kl_coef": "Coefficient of the KL to the model after the warm start.",
    "agent.ppo.num_epochs": "Passes over each batch.",
    "agent.ppo.num_minibatches": "Gradient steps a pass.",
    "agent.ppo.max_grad_norm": "Norm at which the gradient is clipped.",
    "world_model.backend": "Which world model: `mtp`, `mtp_parallel`, `oracle`, `identity` or `shuffled`.",
    "world_model.batch_size_episodes": "Episodes a gradient step.",
    "world_model.reward_coef": "Coefficient of the reward of the transition that arrived.",
    "world_model.continuation_coef": "Coefficient of whether the episode went on.",
    "world_model.value_coef": "Coefficient of the value of imagined states.",
    "world_model.max_grad_norm": "Norm at which the gradient is clipped.",
    "imagination.use": "`off`, `counterfactual`, `baseline` or `episodes`; see the group.",
    "imagination.horizon": "Steps imagined from a state; at most K - 1 with heads that are not recurrent.",
    "imagination.max_live": "Tokens compared in a state: the most probable ones.",
    "imagination.min_probability": "Tokens less probable than this are in the tail, or left out if there is none.",
    "imagination.critic_learning_rate": "Adam's, of the critics of the all-action term.",
    "imagination.critic_updates": "Gradient steps of the critics an iteration.",
    "imagination.critic_replay_iterations": "Iterations of episodes that the critics learn from.",
    "imagination.critic_hidden_size": "Width of the critics.",
    "imagination.slope_decay": "Decay, by batch, of the moving averages that measure skill.",
}
"""Keys whose classes do not describe them yet; a description beside the class comes first."""


def page() -> str:
    """Return ``configuration.md``.

    Raises:
        ValueError: a field is described nowhere, or a description here has no field.
    """
    with hydra.initialize_config_module("worldmtp.configs", version_base="1.3"):
        register()
        composed = hydra.compose("train")
    known: set[str] = set()
    sections = list(_sections(TrainConfig, "", composed, known))
    if stale := sorted(set(_ELSEWHERE) - known):
        raise ValueError(f"docs/configuration.py describes {', '.join(stale)}, which no config has; take them out.")
    return "\n".join([_HEAD, _groups(), "## Keys\n", *sections])


def _sections(kind: type, prefix: str, composed: DictConfig, known: set[str]) -> Iterator[str]:
    """Yield a section for the plain fields of a dataclass, then one for each nested dataclass."""
    rows, nested = [], []
    described = descriptions(kind)
    for field in dataclasses.fields(kind):
        key = f"{prefix}{field.name}"
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            nested.append((field.type, f"{key}."))
            continue
        known.add(key)
        text = described.get(field.name) or _ELSEWHERE.get(key)
        if text is None:
            raise ValueError(f"{kind.__name__}.{field.name} has no description; write one as a string under the field.")
        rows.append(f"| `{key}` | {_default(field)} | {_chosen(field, key, composed)} | {_cell(_upper(text))} |")
    title, about = prefix.rstrip(".") or "the run", _cell(_paragraph(inspect.getdoc(kind) or ""))
    if rows:
        table = "\n".join(["| key | default | command line | what |", "|---|---|---|---|", *rows])
        yield f"### {title}\n\n{about}\n\n{table}\n"
    for inner, inner_prefix in nested:
        yield from _sections(inner, inner_prefix, composed, known)


def descriptions(kind: type) -> dict[str, str]:
    """Return what is said of the fields of a class: under a field, else under ``Attributes`` of the class."""
    found = _attributes(MTPConfig) if kind in (ModelConfig, HeadSpecConfig) else {}
    found |= _attributes(kind)
    (class_node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(class_node, ast.ClassDef)
    for before, node in zip(class_node.body, class_node.body[1:], strict=False):
        is_field = isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if is_field and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[before.target.id] = _paragraph(inspect.cleandoc(str(node.value.value)))
    return found


def _attributes(kind: type) -> dict[str, str]:
    """Return the entries of a Google docstring's ``Attributes``, each as one line."""
    _, _, listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, flags=re.MULTILINE)
    return {name: _paragraph(text) for name, text in entries}


def _paragraph(text: str) -> str:
    """Return the first paragraph as one line."""
    return " ".join(text.partition("\n\n")[0].split())


def _upper(text: str) -> str:
    return text if text.startswith("`") else text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _value(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _value(field.default)


def _chosen(field: "dataclasses.Field[Any]", key: str, composed: DictConfig) -> str:
    """Return the value of the composed config where it is not the dataclass's default."""
    value = OmegaConf.select(composed, key)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    shown = _value(plain)
    return "" if shown == _default(field) else shown


def _value(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "`" + ", ".join(f"{name}: {_scalar(inner)}" for name, inner in value.items()) + "`"
    return f"`{_scalar(value)}`"


def _scalar(value: Any) -> str:
    """Return the value as the command line takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _groups() -> str:
    """Return a table of the config groups; an option is described by the first sentence of its file."""
    parts = []
    for folder in sorted(path for path in Path(worldmtp.configs.__path__[0]).iterdir() if path.is_dir()):
        options = sorted([*((path.stem, _comment(path)) for path in folder.glob("*.yaml")), *_families(folder.name)])
        if options and folder.name != "size":  # chosen by profile=debug
            rows = [f"| `{folder.name}={name}` | {_cell(about)} |" for name, about in options]
            more = _EVERY_ID if folder.name == "env" else []
            parts.append("\n".join([f"### {folder.name}=\n", "| option | what |", "|---|---|", *rows, *more]) + "\n")
    return "\n".join(parts)


_EVERY_ID = [
    "| `env=frozen_lake`, `env=pig`, ... | Every world of `worldmtp envs list`, with settings to start from: a turn is "
    "a move, only moves may be said, no warm start, `agent=ppo_world`, `model=world_tiny`, `imagination=off`. |",
    "| `env=reverse`, `env=chain_sum`, ... | Every other id of the list by its name in small letters. |",
]


def _families(group: str) -> list[tuple[str, str]]:
    """Return the registered families of heads, each with the first sentence of its module."""
    if group != "head":
        return []
    names = [option.name for option in generated_options() if option.group == group]
    return [(name, _first_sentence(_paragraph(str(inspect.getmodule(head_class(name)).__doc__)))) for name in names]


def _comment(path: Path) -> str:
    """Return the first sentence of the comment at the head of a file, without the examples that are set in."""
    said: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#  "):
            break
        if "@package" not in line:
            said.append(line.removeprefix("#").strip())
    return _first_sentence(" ".join(said))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!al)(?<!sec)(?<!eq)\.\s+(?=[A-Z])", " ".join(text.split()))[0].rstrip(":.")


if __name__ == "__main__":
    print(page(), end="")
