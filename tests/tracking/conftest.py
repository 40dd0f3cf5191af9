"""Runs with scenes, a live TensorBoard with this package's tab, and a headless browser that looks at it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worldmtp.tracking import TensorBoardWriter
from worldmtp.tracking.scenes import Guess, Scene, SceneLog, SceneRow

SERVE = """
import sys
from tensorboard import default, program
from worldmtp.tracking.tensorboard_tab import ImaginationPlugin
board = program.TensorBoard(plugins=[*default.get_static_plugins(), ImaginationPlugin])
board.configure(argv=["tensorboard", "--logdir", sys.argv[1], "--port", "0"])
print(board.launch(), flush=True)
sys.stdin.read()
"""
"""As ``tensorboard --logdir``, with the plugin by hand: a clone may be installed without its entry point."""


def guess(top: list[tuple[str, float]], realized: float | None = None, accept: float | None = None) -> Guess:
    return Guess(tuple(sorted(top, key=lambda pair: -pair[1])), realized, accept)


def make_scene(sure: float, exact: bool) -> Scene:
    """'2+' | '5' '<eos>' | 'ok' | '7': depth 2 holds <eos> with probability ``sure`` two tokens before."""
    first = [("5", sure), ("6", 1 - sure)]
    return Scene(
        tokens=("2", "+", "5", "<eos>", "ok", "7"),
        prompt_length=2,
        replies=(4,),
        total=0.75,
        exact=exact,
        predicted=(
            SceneRow("depth 1", (None, None, guess(first, sure, 1.0), guess([("<eos>", 0.9)], 0.9, 1.0), None, None)),
            SceneRow(
                "depth 2", (None, None, None, guess([("9", 1 - sure), ("<eos>", sure)], sure, sure / 0.9), None, None)
            ),
        ),
        imagined=(SceneRow("after 0", (None, None, guess(first), guess([("7", 0.5)]), None, None), root=1),),
        imagined_return=(None, sure, None, None, None, None),
        realized_return=(None, 0.75, None, None, None, None),
    )


@pytest.fixture
def scene() -> Callable[..., Scene]:
    """Makes a small scene with a reply of the world."""
    return make_scene


@pytest.fixture(scope="session")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs below a log directory: ``first/seed0`` with evaluations at steps 0, 64 and 128, and ``second``."""
    root = tmp_path_factory.mktemp("runs")
    for name, steps in {"first/seed0": (0, 64, 128), "second": (0,)}.items():
        (root / name).mkdir(parents=True)
        log = SceneLog(root / name)
        writer = TensorBoardWriter(root / name)
        for place, step in enumerate(steps):
            log.write([make_scene(0.25 + 0.25 * place, False), make_scene(0.9, True)], step)
            writer.scalars({"losses/policy": float(place)}, step)
        writer.close()
    return root


@pytest.fixture(scope="session")
def board(logdir: Path) -> Iterator[str]:
    """The address of a live TensorBoard on ``logdir``, without the slash at its end."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVE, str(logdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        address = process.stdout.readline().strip()
        assert address, "TensorBoard did not start"
        yield address.rstrip("/")
        process.stdin.close()
        process.terminate()


class Page:
    """A page of headless Chromium, driven over the pipe of its DevTools protocol; ``errors`` is its console's."""

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program is not None, "no Chromium; on Debian: apt-get install chromium"
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # Chromium reads commands at descriptor 3 and answers at 4.
        shell = f'exec "$0" "$@" 3<&{reads} 4>&{writes}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, program, *options, "about:blank"],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        target = next(one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """Give a command and return its result; what happens meanwhile is looked at for errors."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def open(self, address: str, width: int = 1300, height: int = 900) -> None:
        """Show an address in a window of this size."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Return the expression's value once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.evaluate(f"(() => {{ try {{ return {expression} }} catch (error) {{ return null }} }})()")
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true in {seconds} s: {expression}; errors: {self.errors}")

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.send("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 16)
            assert part, "Chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url')}")
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(str(parameters["args"]))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A fresh page of a headless browser."""
    opened = Page(tmp_path / "profile")
    yield opened
    opened.close()
