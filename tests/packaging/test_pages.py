"""The pages for readers: their links and pictures lead to files of the project, and pictures are small."""

import re
import runpy
from pathlib import Path

import pytest

MAX_PICTURE_BYTES = 150_000
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the headings of a page as GitHub and the site name them."""
    without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", without_blocks, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(path: str, texts: dict[str, str], root: Path) -> list[str]:
    """Return links of a page that lead nowhere; addresses of the web are not followed."""
    broken = []
    for target in LINK.findall(CODE.sub("", texts[path])):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (root / path).parent / file if file else root / path
        name = found.resolve().relative_to(root.resolve()).as_posix()
        if not found.exists() or (anchor and anchor not in anchors(texts[name])):
            broken.append(target)
    return broken


def pages(texts: dict[str, str]) -> list[str]:
    return [path for path in texts if path.endswith(".md") and (path.startswith("docs/") or "/" not in path)]


def test_every_link_leads_somewhere(project_texts: dict[str, str], project_root: Path) -> None:
    found = pages(project_texts)
    assert {"README.md", "docs/tutorial.md"} <= set(found)
    assert {path: broken for path in found if (broken := broken_links(path, project_texts, project_root))} == {}


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    texts = {"a.md": "# A title\n[x](b.md) [y](#a-title) [z](#other) `[c](no.md)` ![p](p.png) [w](https://example.org)"}
    (tmp_path / "a.md").write_text(texts["a.md"])
    assert broken_links("a.md", texts, tmp_path) == ["b.md", "#other", "p.png"]


def test_pages_that_help_names_are_there(project_texts: dict[str, str]) -> None:
    helping = [path for path in project_texts if path.startswith("worldmtp/cli/") or path == "configs/train.yaml"]
    named = {name for path in helping for name in re.findall(r"\b(\w+\.md)\b", project_texts[path])}
    assert {"configuration.md", "imagination.md", "analysis.md"} <= named
    assert [name for name in sorted(named) if f"docs/{name}" not in project_texts] == []


def test_pictures_are_small_and_shown(project_texts: dict[str, str], project_root: Path) -> None:
    pictures = sorted((project_root / "docs" / "pictures").iterdir())
    assert [path.name for path in pictures if path.stat().st_size > MAX_PICTURE_BYTES] == []
    shown = "\n".join(project_texts[path] for path in pages(project_texts))
    assert [path.name for path in pictures if f"pictures/{path.name})" not in shown] == []


def test_the_readme_names_every_page(project_texts: dict[str, str]) -> None:
    linked = set(LINK.findall(project_texts["README.md"]))
    mapped = [path for path in pages(project_texts) if path.startswith("docs/") and "/reference/" not in path]
    assert [path for path in mapped if path not in linked and path != "docs/index.md"] == []


@pytest.mark.parametrize("script", ["pictures.py", "configuration.py"])
def test_the_scripts_of_the_pages_load(project_root: Path, script: str) -> None:
    namespace = runpy.run_path(str(project_root / "docs" / script), run_name="loaded")
    assert "main" in namespace or "page" in namespace
