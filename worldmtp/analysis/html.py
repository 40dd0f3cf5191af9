"""Building blocks of an offline page: everything from outside is escaped, styles are inline, there is no script."""

import html
from collections.abc import Sequence

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #23262c; -webkit-font-smoothing: antialiased;
  font: 16px/1.6 -apple-system, BlinkMacSystemFont, "Segoe UI", "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 56px 28px 96px; }
h1 { font-size: 29px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 6px; }
h2 { font-size: 20px; font-weight: 650; margin: 56px 0 10px; padding-top: 18px; border-top: 1px solid #e6e8ec; }
h3 { font-size: 16px; font-weight: 650; margin: 30px 0 6px; }
p { margin: 8px 0 14px; max-width: 74ch; }
.lead { color: #5b626d; margin-bottom: 26px; }
code, pre { font: 13px/1.55 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { background: #f3f4f6; border-radius: 3px; padding: 1px 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 14px 0 20px; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: #5b626d; border-bottom: 2px solid #cfd3da; padding: 6px 14px 6px 0; }
td { text-align: right; border-bottom: 1px solid #edeff2; padding: 7px 14px 7px 0; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.prose td { text-align: left; white-space: normal; vertical-align: top; }
table.prose th { text-align: left; }
figure { margin: 18px 0 22px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 14px; line-height: 1.5; color: #5b626d; margin-top: 8px; max-width: 82ch; }
.notice { background: #fdf6ec; border-left: 3px solid #d98032; padding: 10px 16px; margin: 20px 0; font-size: 14.5px; }
.notice ul { margin: 4px 0; padding-left: 20px; }
details { margin: 14px 0; }
summary { cursor: pointer; color: #35618e; }
pre { background: #f7f8f9; border: 1px solid #e6e8ec; border-radius: 4px; padding: 14px; overflow-x: auto; }
@media print { main { padding: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def escape(text: str) -> str:
    """Text that is safe in content and in quoted attributes."""
    return html.escape(text, quote=True)


def page(title: str, body: Sequence[str]) -> str:
    """A whole document. ``title`` is text, ``body`` is markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is fetched, whatever a text may hold.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str, css_class: str = "") -> str:
    """A paragraph of text."""
    attribute = f' class="{escape(css_class)}"' if css_class else ""
    return f"<p{attribute}>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], css_class: str = "") -> str:
    """A table of texts; the first column is left-aligned, the others right unless the class is ``prose``."""
    attribute = f' class="{escape(css_class)}"' if css_class else ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table{attribute}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def figure(data_uri: str, description: str, caption: str, width_pixels: int | None = None) -> str:
    """A picture with what it shows, for those who do not see it, and its caption."""
    width = f' width="{width_pixels}"' if width_pixels is not None else ""
    return (
        f'<figure><img src="{escape(data_uri)}" alt="{escape(description)}"{width}>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def notice(title: str, items: Sequence[str]) -> str:
    """A box that cannot be overlooked."""
    entries = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="notice"><strong>{escape(title)}</strong><ul>{entries}</ul></div>'


def folded(title: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
