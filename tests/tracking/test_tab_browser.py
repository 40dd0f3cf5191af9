"""The Imagination tab in headless Chromium, inside TensorBoard."""

import shutil

import pytest

from worldmtp.tracking.scenes import SceneLog

pytestmark = pytest.mark.browser

FRAME = 'document.querySelector("iframe").contentDocument'


def inside(selector: str) -> str:
    return f"{FRAME}.querySelector({selector!r})"


def hover(page, selector: str) -> None:
    """Put the mouse on an element of the tab's frame."""
    x, y = page.evaluate(
        f"""(() => {{
            const frame = document.querySelector("iframe").getBoundingClientRect();
            const cell = {inside(selector)}.getBoundingClientRect();
            return [frame.x + cell.x + cell.width / 2, frame.y + cell.y + cell.height / 2];
        }})()"""
    )
    page.move(x, y)


@pytest.fixture
def tab(page, board):
    """A page that shows the tab with a run of three evaluations."""
    page.open(f"{board}/#imagination")
    page.wait(inside("#run") + ".options.length === 2")
    page.evaluate(f"""(() => {{
        const run = {inside("#run")};
        run.value = "first/seed0";
        run.dispatchEvent(new Event("change"));
    }})()""")
    page.wait(inside("#where") + '.textContent === "128 (3 of 3)"')
    return page


def test_a_run_is_shown_aligned_by_the_token_spoken_of(tab):
    told = """row => [row.querySelector("th"), ...row.querySelectorAll("td")].map(cell => cell.innerText)"""
    rows = tab.evaluate(f'[...{FRAME}.querySelectorAll("#grid tr:has(td[data-row])")].map({told})')
    # The last token of the prompt, the policy's turn, the world's reply, the policy again. The sure token is at 75 %.
    assert rows == [
        ["realized", "+", "5", "<eos>", "ok", "7"],
        ["depth 1", "", "5\n75 %", "<eos>\n90 %", "", ""],
        ["depth 2", "", "", "<eos>\n75 %", "", ""],
        ["imagined", "▸", "5\n75 %", "7\n≠ 50 %", "", ""],
        ["imagined", "0.75", "", "", "", ""],
        ["realized", "0.75", "", "", "", ""],
    ]
    speakers = tab.evaluate(f'[...{FRAME}.querySelectorAll(".who td")].map((cell) => cell.className)')
    assert speakers == ["prompt", "policy", "world", "policy"]
    assert tab.errors == []


def test_hovering_shows_the_likeliest_tokens_and_what_is_accepted(tab):
    hover(tab, 'td[data-kind="predicted"][data-row="2"]')
    told = tab.wait(f'{inside("#details h3")}.textContent.includes("depth 2") && {inside("#details")}.innerText')
    assert "Token 2, as depth 2 said after the prompt" in told
    shown = tab.evaluate(f'[...{FRAME}.querySelectorAll("#top li")].map((item) => item.innerText.split("\\n"))')
    assert shown == [["<eos>", "0.75 ✓"], ["9", "0.25"]]
    # accept = sure / .9 at sure = .75
    assert "The trunk gave it 0.90: drafted by this depth it is kept with probability 0.83" in told
    assert tab.errors == []


def test_scrubbing_changes_the_step(tab):
    cell = inside('td[data-kind="predicted"]') + ".innerText"
    assert tab.evaluate(cell) == "5\n75 %"
    tab.evaluate(f"""(() => {{
        const step = {inside("#step")};
        step.value = 0;
        step.dispatchEvent(new Event("input"));
    }})()""")
    tab.wait(inside("#where") + '.textContent === "0 (1 of 3)"')
    assert tab.evaluate(cell) == "6\n≠ 75 %"
    assert tab.errors == []


def test_the_keyboard_does_it_all(tab):
    tab.evaluate(inside('td[data-kind="predicted"]') + ".focus()")
    tab.press("ArrowDown")  # over an empty cell, to what was imagined of this token
    focused = f"{FRAME}.activeElement"
    assert tab.evaluate(f"{focused}.dataset.kind") == "imagined"
    assert tab.evaluate(f"getComputedStyle({focused}).outlineStyle") == "solid"
    assert "as imagined after the prompt, step 1" in tab.evaluate(inside("#details h3") + ".textContent")
    tab.press("ArrowRight")
    assert tab.evaluate(f"{focused}.innerText") == "7\n≠ 50 %"
    tab.press("[")
    tab.wait(inside("#where") + '.textContent === "64 (2 of 3)"')
    assert tab.evaluate(f"{focused}.dataset.kind") == "imagined"  # the place is kept
    tab.press(".")
    tab.wait(inside("#prompt") + ".selectedIndex === 1")
    tab.press("]")
    tab.wait(inside("#where") + '.textContent === "128 (3 of 3)"')
    assert tab.errors == []


def test_a_run_without_an_evaluation_is_shown_when_it_has_one(page, board, logdir, scene):
    # What asks anew every 30 s is called by the test.
    held = "if (window !== top) window.setInterval = (asks) => (window.asks = asks)"
    page.send("Page.addScriptToEvaluateOnNewDocument", source=held)
    run = logdir / "third"  # the last by name is opened
    run.mkdir()
    file = run / "imagination.jsonl"
    try:
        file.touch()
        page.open(f"{board}/#imagination")
        page.wait(inside("#run") + '.value === "third"')
        notice = inside(".notice")
        assert page.wait(f"!{notice}.hidden && {notice}.textContent").startswith("This run has no evaluation yet")
        frame = 'document.querySelector("iframe").contentWindow'
        page.evaluate(f"{frame}.asks()")
        page.wait(f"!{notice}.hidden")  # it is said again
        SceneLog(run).write([scene(0.25, False), scene(0.9, True)], 64)
        page.evaluate(f"{frame}.asks()")
        page.wait(inside("#where") + '.textContent === "64 (1 of 1)"')
        assert page.evaluate(inside("#prompt") + ".selectedIndex") == 0
        assert page.evaluate(f"{notice}.hidden")
        assert page.errors == []
    finally:
        shutil.rmtree(run)


@pytest.mark.parametrize("width", [700, 1300])
def test_nothing_is_wider_than_the_window(tab, width):
    tab.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert tab.wait(f"{FRAME}.documentElement.clientWidth <= {width}")
    assert tab.evaluate(f"{FRAME}.documentElement.scrollWidth <= {FRAME}.documentElement.clientWidth")
