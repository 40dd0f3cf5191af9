"""Golden runs: numbers recorded before the code moves, so that a move which changes one of them is seen.

A golden run is a small job at a fixed seed, in float64; its numbers are kept in ``<kind>/<case>.json``. It says that
nothing has changed, not that anything is right: known answers and laws are tested elsewhere. Where a change of the
numbers is meant, record them again, read the difference, and list it with its reason in CHANGELOG.md, *Numerics*::

    WRITE_GOLDEN=1 python -m pytest tests/golden; git diff tests/golden

Everything goes through public names (``worldmtp.MTPModel``, ``worldmtp.agents.ImaginationTrainer``, ...). Where a move
renames one, the imports and adapters here and at the head of a test file change, and the recorded numbers do not.

**Tolerance.** Integers, texts and flags agree exactly; floats to 1e-12 of the larger of 1 and themselves. Float64
rounds at 1e-16, and a few steps of a model with a few thousand weights stay three digits below the tolerance when
kernels add up in another order (measured: one thread or two, the widest vector instructions or none, by
``ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE``). That needs float64 throughout, which no model of transformers is
by itself: ``_KeepsDoubles``.

**Weights** are uniform numbers of numpy, seeded by the parameter's name in a checkpoint: the same on every machine,
whatever the modules' order, and no head starts at zero or as a copy of the trunk.
"""

import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from worldmtp import MTPConfig, MTPModel
from worldmtp.envs import Example, Score, TextGenVectorEnv, TextVectorEnv, VectorActionMask, WorldTask

FOLDER = Path(__file__).parent
RENEW = "WRITE_GOLDEN=1 python -m pytest tests/golden"
TOLERANCE = 1e-12
ALPHABET = "abcd="


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str, dict[str, Any]], None]:
    """``golden(kind, case, seen)`` compares what is seen with what was recorded, or records it where that is asked."""
    return _golden


def _golden(kind: str, case: str, seen: dict[str, Any]) -> None:
    path = FOLDER / kind / f"{case}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_text(seen), encoding="utf-8")
        pytest.skip(f"{kind}/{path.name} was written")
    assert path.exists(), f"{kind}/{path.name} was never recorded: {RENEW}"
    found = differences(json.loads(as_text(seen)), json.loads(path.read_text(encoding="utf-8")), "")
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    assert not found, (
        f"{kind}/{path.name}: {'; '.join(found[:5])}{more}. If that is meant, record it again ({RENEW}) and list it in "
        "CHANGELOG.md under Numerics."
    )


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], set[str]]:
    """Cases of a kind that have a file. One that no test reads any more would be taken for a check."""
    return lambda kind: {path.stem for path in (FOLDER / kind).iterdir()}


def as_text(trace: dict[str, Any]) -> str:
    """JSON with one key a line; floats as Python writes them, which is exact."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in trace.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences(seen: Any, golden: Any, at: str) -> list[str]:
    """Where two traces disagree, as messages."""
    if isinstance(golden, dict) and isinstance(seen, dict):
        missing = [f"{at}{key} is missing" for key in golden if key not in seen]
        new = [f"{at}{key} is new" for key in seen if key not in golden]
        shared = [key for key in golden if key in seen]
        return missing + new + [line for key in shared for line in differences(seen[key], golden[key], f"{at}{key} ")]
    if isinstance(golden, list) and isinstance(seen, list) and len(golden) == len(seen):
        pairs = enumerate(zip(seen, golden, strict=True))
        return [line for index, (new, old) in pairs for line in differences(new, old, f"{at}[{index}] ")]
    if type(seen) is type(golden) is float:
        alike = abs(seen - golden) <= TOLERANCE * max(1.0, abs(golden)) or (math.isnan(seen) and math.isnan(golden))
        alike = alike or seen == golden  # infinities
    else:
        alike = type(seen) is type(golden) and seen == golden
    return [] if alike else [f"{at}was {golden!r} and is {seen!r}"]


class _KeepsDoubles(TorchFunctionMode):
    """Float64 stays float64: norms and rotary angles of transformers would round it to float32, in any model.

    What two processors round differently at 1e-16, float32 makes 6e-8 of wherever it falls to another side.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            if func is torch.Tensor.to:
                args = tuple(torch.float64 if value is torch.float32 else value for value in args)
                kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


class _NothingSingle(TorchDispatchMode):
    """No operation makes float32: for TRL's losses, which compute their own gradients in it, inside of autograd."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        chosen = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **chosen)


@pytest.fixture(autouse=True)
def _all_in_float64():
    """What is made anew, such as models of replies and the numbers of a rollout, is float64 too."""
    torch.set_default_dtype(torch.float64)
    with _KeepsDoubles():
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def losses_in_float64():
    """As the losses of TRL need it; see ``_NothingSingle``."""
    with _NothingSingle():
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """As on a machine with one core; what several add is said in the head of this file."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn_model() -> Callable[..., MTPModel]:
    """A float64 model; ``drawn_model(vocab_size, seed, **MTPConfig's fields)``."""
    return _drawn_model


@pytest.fixture(scope="session")
def drawn_trunk() -> Callable[..., PreTrainedModel]:
    """A float64 causal LM alone; ``drawn_trunk(vocab_size, seed, hidden_size, num_layers)``."""
    return _drawn_trunk


@pytest.fixture(scope="session")
def weight_sums() -> Callable[[MTPModel], dict[str, float]]:
    """Sums of the absolute weights of a model, by part: where training ended."""
    return _weight_sums


def _weight_sums(model: MTPModel) -> dict[str, float]:
    parts = {"trunk": model.trunk, "heads": model.heads, "world_heads": model.world_heads}
    return {name: sum(w.detach().abs().sum().item() for w in part.parameters()) for name, part in parts.items()}


def _drawn_model(vocab_size: int, seed: int = 0, **heads: Any) -> MTPModel:
    model = MTPModel.from_trunk(_drawn_trunk(vocab_size), MTPConfig(**heads), torch.Generator().manual_seed(0))
    return draw_weights(model, seed).eval()


def _drawn_trunk(vocab_size: int, seed: int = 0, hidden_size: int = 16, num_layers: int = 2) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        return draw_weights(LlamaForCausalLM(config).double(), seed).eval()


def draw_weights(module: nn.Module, seed: int) -> Any:
    """Matrices uniform with standard deviation fan_in ** -0.5, gains about one, biases about zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            source = np.random.default_rng(zlib.crc32(name.encode(), seed))
            uniform = torch.from_numpy(source.uniform(-1.0, 1.0, size=tuple(parameter.shape)))
            if parameter.ndim > 1:
                parameter.copy_(uniform * (3 / parameter.shape[-1]) ** 0.5)
            else:
                parameter.copy_(0.1 * uniform + (0.0 if name.endswith("bias") else 1.0))
    return module


@pytest.fixture(scope="session")
def text_env() -> Callable[[str, int], TextVectorEnv]:
    """``text_env(kind, num_envs)``: "letters", the same "masked", or a "conversation"; pad 0, EOS 1, "abcd=" from 2."""
    return _text_env


def _text_env(kind: str, num_envs: int) -> TextVectorEnv:
    rows = {
        "num_envs": num_envs,
        "autoreset_mode": "disabled",
        "tokenizer": {"kind": "char", "alphabet": ALPHABET},
        "pool_size": 8,
    }
    if kind == "conversation":
        turns = {"max_prompt": 2, "max_new": 18, "max_turn": 2}
        return TextGenVectorEnv(task=WorldTask(Echo, num_seeds=40), **turns, **rows)
    env = TextGenVectorEnv(task=CountLetters(), max_prompt=3, max_new=5, heldout_fraction=0.25, **rows)
    return VectorActionMask(env, alphabet="abc") if kind == "masked" else env


class CountLetters:
    """Prompt: two letters and "=". Each "a" or "b" written is paid a quarter, up to one."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        letters = "".join(rng.choice(list("abcd"), size=2))
        return Example(prompt=f"{letters}=", answer="abab")

    def score(self, example: Example, text: str, ids: np.ndarray) -> Score:
        count = min(text.count("a") + text.count("b"), 4)
        return Score(value=count / 4, components={}, reason="ok", exact=count == 4)


class Echo:
    """Repeats what is said behind "=" and pays an eighth for each "a"; three turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._num_turns = 0
        return "abcd"[seed % 4] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._num_turns += 1
        return "=" + text, text.count("a") / 8, self._num_turns == 3, False, {}
