"""Draw the pictures of these pages from a run directory, small enough to be committed.

    python docs/pictures.py runs/quickstart/2026-01-31_12-00-00_seed0 --for readme
    python docs/pictures.py runs/sort/2026-01-31_12-00-00_seed0 --for tutorial
    python docs/pictures.py runs/quickstart/2026-01-31_12-00-00_seed0 --for tensorboard
    python docs/pictures.py runs/quickstart/2026-01-31_12-00-00_seed0 --for attention
    python docs/pictures.py runs/answers runs/conversation --for evolution

Those of attention and evolution are of runs that were evaluated during their warm start, too (sft.eval_steps); the
second run of an evolution is a conversation. Nothing is drawn by hand: token strips and figures are those of the run's
own report, from what the run saved. The Imagination tab is photographed in TensorBoard by headless Chromium.
"""

import argparse
import io
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from worldmtp.analysis import figures
from worldmtp.analysis.artefacts import EvalArtefact, imagined_strip, token_strip
from worldmtp.analysis.attention_figures import gallery, pattern_curves
from worldmtp.analysis.evolution import evolution_figure
from worldmtp.analysis.metrics import rooted_predictions
from worldmtp.analysis.run_files import RunFiles, read_run
from worldmtp.tracking.strips import render_strip
from worldmtp.tracking.tensorboard_tab import ImaginationPlugin

FOLDER = Path(__file__).parent / "pictures"
MAX_BYTES = 150_000
_DPI = 110
_COLOURS = 64
"""Strips and line figures lose nothing that is seen, and take a third of the bytes."""
_GAP_PIXELS = 24
_FONT_PIXELS = 20
_TAB_PIXELS = (960, 960)
_BAR_PIXELS = 66
"""Height of TensorBoard's own bar."""


def draw(run_dir: Path, page: str, folder: Path = FOLDER) -> list[Path]:
    """Draw the pictures of a page and return their paths.

    Raises:
        ValueError: the run has no evaluation of its end, or a picture is too large to be committed.
    """
    if page == "tensorboard":
        return [_save(_tab(run_dir), folder / "tab.png")]
    if page == "attention":
        return _attention(read_run(run_dir), folder)
    run = read_run(run_dir)
    if not run.artefacts:
        raise ValueError(f"{run_dir} has no evaluation under artefacts/; give a run that is done.")
    last = list(run.artefacts.values())[-1]
    strips = _stack([_beside(_strips(last, row)) for row in _rows(last, 1 if page == "readme" else 2)])
    pictures: dict[str, Image.Image] = {f"{page}_strips": strips}
    if page == "tutorial":
        rooted = {name: rooted_predictions(artefact) for name, artefact in run.artefacts.items()}
        drawn: dict[str, Figure | None] = {
            "learning": figures.learning_curves(run.metrics, run.warm_start),
            "depths": figures.depth_curves(rooted),
            "returns": figures.return_scatter(last),
        }
        pictures |= {f"{page}_{name}": _image(figure) for name, figure in drawn.items() if figure is not None}
    return [_save(image, folder / f"{name}.png") for name, image in pictures.items()]


def draw_evolution(answers: Path, conversation: Path, folder: Path = FOLDER) -> Path:
    """Draw a run of single answers and one of a conversation, from warm start to end, and return the path.

    Raises:
        ValueError: one of them was not evaluated twice, or the picture is too large to be committed.
    """
    titles = ("Single answers: words spelled backward", "A conversation: guess a digit, hear higher or lower")
    runs = {title: read_run(path) for title, path in zip(titles, (answers, conversation), strict=True)}
    short = [str(run.run_dir) for run in runs.values() if evolution_figure({"": run}) is None]
    figure = evolution_figure(runs)
    if short or figure is None:
        raise ValueError(f"{short} were not evaluated twice; lower eval.every_iterations.")
    return _save(_image(figure), folder / "evolution.png")


def _attention(run: RunFiles, folder: Path) -> list[Path]:
    """Draw the patterns of every head over training, and maps of one prompt."""
    drawn = {"patterns": pattern_curves(run.attention, run.steps), "maps": gallery(run.attention)}
    missing = [name for name, figure in drawn.items() if figure is None]
    if missing:
        raise ValueError(f"{run.run_dir} holds no attention to draw {missing} of; give a run with eval.num_attention.")
    return [
        _save(_image(figure), folder / f"attention_{name}.png") for name, figure in drawn.items() if figure is not None
    ]


def _tab(run_dir: Path) -> Image.Image:
    """Return the Imagination tab as it opens, without TensorBoard's own bar."""
    from tensorboard import default, program

    board = program.TensorBoard(plugins=[*default.get_static_plugins(), ImaginationPlugin])
    board.configure(argv=["tensorboard", "--logdir", str(run_dir), "--port", "0"])
    address = board.launch()
    width, height = _TAB_PIXELS
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "tab.png"
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=20000",
        ]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", f"--screenshot={taken}"]
        subprocess.run(["chromium", *options, f"{address}#imagination"], check=True, capture_output=True)
        return Image.open(taken).convert("RGB").crop((0, _BAR_PIXELS, width, height))


def _rows(artefact: EvalArtefact, count: int) -> list[int]:
    """Return answers in which the heads erred somewhere: of the longest, those whose middle is best predicted.

    An answer that every depth foresaw, or none, shows less of what a strip is for.
    """
    rooted = rooted_predictions(artefact)
    agrees = rooted.agrees.sum(axis=(1, 2)) / np.maximum(1, rooted.valid.sum(axis=(1, 2)))
    lengths = rooted.valid[:, :, 0].sum(axis=1)
    longest = np.flatnonzero((lengths == lengths.max()) & (agrees < 1))
    return [int(row) for row in longest[np.argsort(np.abs(agrees[longest] - 0.75), kind="stable")][:count]]


def _strips(artefact: EvalArtefact, row: int) -> list[Image.Image]:
    """Return an answer as the heads read it, and as the world model imagined it."""
    read = token_strip(artefact, row, "predicted, by depth of the head")
    imagined = imagined_strip(artefact, row, "imagined, after n tokens of the answer")
    return [Image.fromarray(render_strip(strip, font_size_pixels=_FONT_PIXELS)) for strip in (read, imagined)]


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    width = sum(image.width for image in images) + _GAP_PIXELS * (len(images) - 1)
    joined = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + _GAP_PIXELS
    return joined


def _stack(images: Sequence[Image.Image]) -> Image.Image:
    height = sum(image.height for image in images) + _GAP_PIXELS * (len(images) - 1)
    stacked = Image.new("RGB", (max(image.width for image in images), height), "white")
    top = 0
    for image in images:
        stacked.paste(image, (0, top))
        top += image.height + _GAP_PIXELS
    return stacked


def _image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return Image.open(buffer).convert("RGB")


def _save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} takes {path.stat().st_size} bytes, more than {MAX_BYTES}; draw less of the run.")
    return path


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", type=Path, nargs="+")
    pages = ("readme", "tutorial", "tensorboard", "attention", "evolution")
    parser.add_argument("--for", dest="page", choices=pages, required=True)
    parsed = parser.parse_args()
    expected = 2 if parsed.page == "evolution" else 1
    if len(parsed.run_dirs) != expected:
        parser.error(f"--for {parsed.page} takes {expected} run directories, and there are {len(parsed.run_dirs)}.")
    found = draw_evolution(*parsed.run_dirs) if expected == 2 else None
    for path in [found] if found is not None else draw(parsed.run_dirs[0], parsed.page):
        print(f"{path} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
