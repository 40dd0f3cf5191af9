"""The Imagination tab: a TensorBoard plugin that shows what was predicted and imagined beside what came.

TensorBoard finds it by the entry point ``tensorboard_plugins`` of the installed package. It reads
``imagination.jsonl`` of every run below ``--logdir``, all evaluations of it, whatever ``--samples_per_plugin`` says.
The page is ``tab.js`` and ``tab.css`` beside this file; nothing is built, and nothing is fetched from elsewhere.

Left out: what reads the log directory by itself sees neither ``--logdir_spec`` nor a directory in a cloud.
"""

import functools
import os
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tensorboard.backend.http_util import Respond
from tensorboard.plugins import base_plugin
from werkzeug.wrappers import Request, Response

from worldmtp.tracking.scenes import SCENES_FILE, overview
from worldmtp.tracking.writers import read_records

_ASSETS = {"/tab.js": "text/javascript", "/tab.css": "text/css"}


class ImaginationPlugin(base_plugin.TBPlugin):
    """Serves the tab's page and the scenes of the runs below the log directory."""

    plugin_name = "imagination"

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        self._logdir = Path(context.logdir) if context.logdir else None

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Return what is served below ``data/plugin/imagination``."""
        routes = {"/runs": self._runs, "/run": self._run, "/scenes": self._scenes}
        return {
            **{route: _answering(function) for route, function in routes.items()},
            **{route: functools.partial(_asset, route.removeprefix("/"), kind) for route, kind in _ASSETS.items()},
        }

    def is_active(self) -> bool:
        """Return whether any run has scenes."""
        return bool(self._files())

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Return how TensorBoard shows the tab, which asks for new evaluations by itself."""
        return base_plugin.FrontendMetadata(es_module_path="/tab.js", tab_name="Imagination", disable_reload=True)

    def _files(self) -> dict[str, Path]:
        """Return the file of scenes of each run, by the run's path below the log directory."""
        found: dict[str, Path] = {}
        if self._logdir is None:
            return found
        for directory, folders, names in os.walk(self._logdir):
            folders.sort()
            if SCENES_FILE in names:
                folders.clear()  # no run in a run
                path = Path(directory)
                name = path.relative_to(self._logdir).as_posix()
                found[path.resolve().name if name == "." else name] = path / SCENES_FILE
        return found

    def _records(self, run: str) -> list[dict[str, Any]]:
        known = self._files()
        if run not in known:
            raise _NotFoundError(f"No run {run!r} with a {SCENES_FILE} below {self._logdir}; it has {sorted(known)}.")
        status = known[run].stat()
        return _read(known[run], status.st_mtime_ns, status.st_size)

    def _runs(self, asked: Mapping[str, str]) -> dict[str, Any]:
        return {"runs": sorted(self._files())}

    def _run(self, asked: Mapping[str, str]) -> dict[str, Any]:
        return overview(self._records(asked.get("run", "")))

    def _scenes(self, asked: Mapping[str, str]) -> dict[str, Any]:
        records = {str(record["step"]): record for record in self._records(asked.get("run", ""))}
        step = asked.get("step", "")
        if step not in records:
            raise _NotFoundError(f"No evaluation at step {step!r}; this run has {', '.join(records)}.")
        return records[step]


class _NotFoundError(LookupError):
    """There is no such run or step."""


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int, size: int) -> list[dict[str, Any]]:
    """Return the lines of a file; the time and the size make it be read again when a run has written."""
    return read_records(path)


def _answering(function: Callable[[Mapping[str, str]], dict[str, Any]]) -> Callable[..., Any]:
    """Return the WSGI application of a function from a query to what is sent as JSON; errors are sent as texts."""

    @Request.application
    def application(request: Request) -> Response:
        try:
            content, code = function(request.args), 200
        except _NotFoundError as error:
            content, code = {"error": str(error)}, 404
        except (ValueError, OSError) as error:  # a file that is damaged, or that was removed in between
            content, code = {"error": str(error)}, 500
        answer: Response = Respond(request, content, "application/json", code=code)
        return answer

    return application


def _asset(name: str, kind: str, environ: Any, start_response: Any) -> Any:
    content = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return Respond(Request(environ), content, kind)(environ, start_response)
