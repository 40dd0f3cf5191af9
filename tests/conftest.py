"""What every room's tests share: quiet and offline surroundings, tiny random trunks, the project's tree.

Tests do not import from one another; what two of them need is a fixture here. torch and transformers are imported
inside the fixtures: the variables below must be set first, and tests that need no network of theirs stay fast.
"""

import functools
import gc
import inspect
import ipaddress
import os
import random
import re
import socket
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np
import pytest
from beartype._check.code import codemain
from beartype.roar import BeartypeCallHintViolation
from jaxtyping._array_types import _MetaAbstractArray
from jaxtyping._decorator import _destring_annotation
from jaxtyping._storage import _shape_storage, pop_shape_memo, push_shape_memo, shape_str

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # xdist runs one worker for each core
    TOKENIZERS_PARALLELISM="false",
    TRL_EXPERIMENTAL_SILENCE="1",
)

# The run-time type checks look at a random item of each container. They shall not draw from the generator that tests
# watch; nothing of worldmtp is imported, and so decorated, before this line.
codemain.getrandbits = random.Random(0).getrandbits

if sys.version_info < (3, 12):  # which keeps them itself; before, each check against a protocol gathers them anew
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)

_jaxtyped = jaxtyping.jaxtyped


def _checked_once(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """What ``--jaxtyping-packages`` puts on every function and dataclass, at a fraction of ``jaxtyping.jaxtyped``.

    That one makes two functions of each, binds each call's arguments to names twice, and looks at the arguments again
    when it looks at the result. Here each is looked at once, axes agree within a call as before, and a function whose
    annotations name no axes gets the plain type check. Left to jaxtyping: generators.
    """

    def decorate(target: Any) -> Any:
        if inspect.isclass(target):
            unchecked = is_dataclass(target) and not getattr(target, "__no_type_check__", False)
            if unchecked and not hasattr(target.__init__, "__wrapped__"):
                target.__init__ = decorate(target.__init__)
            return target
        if not inspect.isfunction(target) or inspect.isgeneratorfunction(target):
            return _jaxtyped(target, typechecker=typechecker)
        checked = _with_plain_check(target, typechecker)
        if not any("jaxtyping" in repr(hint) for hint in target.__annotations__.values()):
            return checked

        @functools.wraps(target)
        def in_a_scope_of_axes(*args: Any, **kwargs: Any) -> Any:
            axes = push_shape_memo({})
            try:
                return checked(*args, **kwargs)
            except BeartypeCallHintViolation as error:
                error.add_note(shape_str(axes))
                raise
            finally:
                pop_shape_memo()

        return in_a_scope_of_axes

    return decorate


def _with_plain_check(target: Any, typechecker: Callable[..., Any]) -> Any:
    """Check a function's types; the check of a function within a function is made once, not at each definition."""
    if "<locals>" not in target.__qualname__:
        return _with_new_check(target, typechecker)
    key = (target.__code__, *map(repr, target.__annotations__.values()))
    made = _checks.get(key) or _checks.setdefault(key, _with_new_check(_stand_in(target), typechecker))
    if not hasattr(made, "__wrapped__"):
        return target  # it names no types
    checked = types.FunctionType(made.__code__, made.__globals__, made.__name__)
    checked.__kwdefaults__ = made.__kwdefaults__ | {"__beartype_func": target}
    return functools.update_wrapper(checked, target)


def _stand_in(target: Any) -> Any:
    """Make a function of the same signature that can be kept: nothing of the call that defined it lives on in it."""
    cells = tuple(types.CellType() for _ in target.__code__.co_freevars)
    made = types.FunctionType(target.__code__, target.__globals__, target.__name__, target.__defaults__, cells)
    made.__kwdefaults__, made.__annotations__ = target.__kwdefaults__, target.__annotations__
    made.__qualname__, made.__module__ = target.__qualname__, target.__module__
    return made


_checks: dict[tuple[Any, ...], Any] = {}


def _with_new_check(target: Any, typechecker: Callable[..., Any]) -> Any:
    """Check a function's types; a hint in quotes whose name is not known yet is anything, as in jaxtyping."""
    hints = target.__annotations__
    if not any(isinstance(hint, str) for hint in hints.values()):
        return typechecker(target)
    target.__annotations__ = {name: _destring_annotation(hint, target.__globals__) for name, hint in hints.items()}
    checked = typechecker(target)
    target.__annotations__ = checked.__annotations__ = hints
    return checked


jaxtyping.jaxtyped = _checked_once

_fits = _MetaAbstractArray.__instancecheck__


def _fits_quickly(annotation: Any, array: Any) -> bool:
    """Return what jaxtyping does, which writes each dtype as text and copies four dictionaries.

    Where axes are names or numbers, or one stands for several, each no and the first yes to each dtype are its alone.
    """
    if "axes_and_dtypes" not in annotation.__dict__:
        annotation.axes_and_dtypes = _plain_axes(annotation), set()
    axes, dtypes = annotation.axes_and_dtypes
    if axes is None:
        return _fits(annotation, array)
    names, place, most, several = axes
    known = isinstance(array, annotation.array_type) and array.dtype in dtypes
    if not known or not 0 <= (rest := array.ndim - len(names)) <= most:
        passed = _fits(annotation, array)
        dtypes |= {array.dtype} if passed else set()
        return passed
    memos = getattr(_shape_storage, "memo_stack", None) or [({}, {})]
    sizes = memos[-1][0]
    before, shape = sizes.copy(), array.shape
    for axis, size in zip(names, shape[:place] + shape[place + rest :] if rest else shape, strict=True):
        if axis is not None and size != (axis if isinstance(axis, int) else sizes.setdefault(axis, size)):
            break
    else:
        if not several or memos[-1][1].setdefault(several, group := (False, shape[place : place + rest])) == group:
            return True
    sizes.clear(), sizes.update(before)
    return _fits(annotation, array)


def _plain_axes(annotation: Any) -> tuple[tuple[str | int | None, ...], int, int, str] | None:
    """Return name or size of each axis, None for any; where one stands for how many, its name; None for ``#axis``."""
    axes = annotation.dim_str.replace("...", "*_").split()
    groups = [axis for axis in axes if axis.startswith("*")]
    plain = len(groups) < 2 and all(re.fullmatch(r"\*?[^\W\d]\w*|\d+", axis) for axis in axes)
    if annotation.array_type is Any or not plain:
        return None
    single = [axis for axis in axes if axis not in groups]
    names = tuple(None if axis.startswith("_") else int(axis) if axis.isdigit() else axis for axis in single)
    place, most = (axes.index(groups[0]), sys.maxsize) if groups else (0, 0)
    return names, place, most, re.sub(r"^\*(_\w*)?", "", "".join(groups))


_MetaAbstractArray.__instancecheck__ = _fits_quickly


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--one-of-each``, which ``make test-fast`` passes."""
    parser.addoption("--one-of-each", action="store_true", help="run each test with the first of its parameters alone")


@pytest.hookimpl(tryfirst=True)  # before ``-m`` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests of the sources as ``tree``; skip tests marked ``gpu`` where there is none."""
    if config.getoption("--one-of-each"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        config.hook.pytest_deselected(
            items=[item for item in items if first[item.nodeid.partition("[")[0]] is not item]
        )
        items[:] = [item for item in items if first[item.nodeid.partition("[")[0]] is item]
    for item in items:
        if "project_root" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.tree)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Take what is imported by now out of the rounds of the garbage collector."""
    _leave_alone_what_stays()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """Do so again when a test has imported a library."""
    if len(sys.modules) > _num_modules[0] + 100:
        _leave_alone_what_stays()


_num_modules = [0]


def _leave_alone_what_stays() -> None:
    """Each round would look at a million objects of torch, transformers and TRL: a fifth of the suite's time."""
    gc.collect()
    gc.freeze()
    _num_modules[0] = len(sys.modules)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections leave this machine's loopback for an error, in unit tests as in the product's own runs."""

    def guard(connect: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(str(address[0])):
                raise RuntimeError(f"A test connects to {address!r}; tests use no network.")
            return connect(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guard(socket.socket.connect_ex))
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, not an address
        return host == "localhost"


@pytest.fixture(scope="session")
def tiny_trunk() -> Callable[..., "PreTrainedModel"]:
    """A factory of Hugging Face causal LMs with random weights, small enough to train inside a test."""
    return _tiny_trunk


def _tiny_trunk(
    kind: str,
    *,
    vocab_size: int = 64,
    hidden_size: int = 32,
    num_layers: int = 2,
    tied: bool = False,
    dtype: "torch.dtype | None" = None,
    seed: int = 0,
) -> "PreTrainedModel":
    """A ``llama``, ``qwen3``, ``gpt2`` or ``gpt_neox`` in eval mode, pad 0 and eos 1; dropout is off in all of them.

    Pass ``dtype=torch.float64`` where a tolerance is argued. Transformers initialise from the global generator, so
    that generator is forked: equal seeds give equal weights and the test's own state is left as it was.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    num_heads = 4
    common = {
        "vocab_size": vocab_size,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "tie_word_embeddings": tied,
    }
    modern = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": 128,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": hidden_size // num_heads}
    per_kind: dict[str, dict[str, Any]] = {
        "llama": modern | grouped,
        "qwen3": modern | grouped,
        "gpt_neox": modern,
        "gpt2": {
            "n_embd": hidden_size,
            "n_layer": num_layers,
            "n_head": num_heads,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    }
    config = CONFIG_MAPPING[kind](**common, **per_kind[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def global_rng_untouched() -> Callable[[], AbstractContextManager[None]]:
    """Makes a context manager that fails if its block drew from a global generator."""
    return _global_rng_untouched


@contextmanager
def _global_rng_untouched() -> Iterator[None]:
    import torch

    def states() -> dict[str, str]:
        return {
            "random": repr(random.getstate()),
            "numpy.random": repr(np.random.get_state()),  # noqa: NPY002 - the generator that must be left alone
            "torch": repr(torch.get_rng_state().tolist()),
        }

    before = states()
    yield
    drawn = [name for name, state in states().items() if state != before[name]]
    assert not drawn, f"drawn from global generators: {', '.join(drawn)}; pass a generator in"


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The clone these tests stand in; skips where they run against an installed wheel, away from the sources."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "worldmtp" / "__init__.py").exists():
        pytest.skip("no source tree beside the tests")
    return root


@pytest.fixture
def host_reads() -> Callable[..., AbstractContextManager[list[str]]]:
    """A context that lists where code of some packages makes the host wait, as module.function: call.

    On a CPU nobody waits, so calls are watched in place of time: whatever gives Python a number, or a shape that only
    the data knows. ``HostCopy`` tells meanwhile that nothing has arrived, as an accelerator's would. Left out: torch's
    optimisers, whose counters of steps lie on the host.
    """
    return _host_reads


@contextmanager
def _host_reads(packages: tuple[str, ...] = ("worldmtp",)) -> Iterator[list[str]]:
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    reads = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__contains__")
    methods = {getattr(torch.Tensor, name): name for name in reads}
    operations = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal")
    ours, found = ("torch", "jaxtyping", "beartype", "contextlib", "functools"), list[str]()

    def notice(what: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            module, code = frame.f_globals.get("__name__", ""), frame.f_code
            if module.startswith("torch.optim"):
                return
            if code.co_filename != __file__ and module.partition(".")[0] not in ours:
                if module.partition(".")[0] in packages:
                    found.append(f"{module}.{code.co_name}: {what}")
                return
            frame = frame.f_back

    class Methods(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in methods:
                notice(methods[function])
            return function(*args, **(kwargs or {}))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            by_mask = name == "index" and any(place is not None and place.dtype == torch.bool for place in args[1])
            by_counts = name == "repeat_interleave" and "output_size" not in (kwargs or {})
            if name in operations or by_mask or by_counts:
                notice(name)
            return function(*args, **(kwargs or {}))

    from worldmtp.tracking.late_numbers import HostCopy

    with pytest.MonkeyPatch.context() as patch, Methods(), Operations():
        patch.setattr(HostCopy, "has_arrived", False)
        yield found
