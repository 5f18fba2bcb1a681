"""Pages of HTML that need no other file: pictures inside, no script from elsewhere.

They are readable on a phone: what is wide, a table or a command, scrolls by itself.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = [
    'Cell', 'details', 'document', 'gallery', 'heading', 'picture', 'pre', 'table',
    'text',
]


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        shown: its text, or HTML from the functions of this module.
        key: what its column is sorted by; None: it comes last.
        is_html: whether `shown` is HTML.
    """

    shown: str
    key: float | str | None = None
    is_html: bool = False


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: #06c; }
@media (prefers-color-scheme: dark) { :root { --link: #6af; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
a { color: var(--link); }
img { max-width: 100%; height: auto; background: #fff; }
figure { margin: 0 0 1.5rem; } figcaption { font-size: .9rem; opacity: .8; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.wide, pre { overflow-x: auto; max-width: 100%; }
pre { background: var(--soft); padding: .75rem; border-radius: .25rem;
  overflow-wrap: normal; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: ' \\2191'; }
th[aria-sort=descending] button::after { content: ' \\2193'; }
td.number { font-variant-numeric: tabular-nums; }
.sortable { white-space: nowrap; }
.alarm { border-left: 4px solid #c30; padding-left: .75rem; }
"""

# A click on a heading sorts by it, another one turns the order; cells without a value
# stay last.
_SCRIPT = """
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const heading = button.closest('th'), table = heading.closest('table');
    const column = [...heading.parentNode.children].indexOf(heading);
    const up = heading.getAttribute('aria-sort') !== 'ascending';
    for (const other of heading.parentNode.children) other.removeAttribute('aria-sort');
    heading.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => row.children[column].dataset.key;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const last = [x, y].map(k => k === undefined);
      if (last[0] || last[1]) return last[0] - last[1];
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  });
}
"""


def document(title: str, body: Iterable[str]) -> str:
    """Return a page.

    Args:
        title: its title, which is its first heading too.
        body: HTML from the functions of this module.
    """
    parts = '\n'.join(body)
    script = f'<script>{_SCRIPT}</script>\n' if '<th><button' in parts else ''
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f'<h1>{_escape(title)}</h1>\n{parts}\n{script}</body>\n</html>\n'
    )


def heading(words: str) -> str:
    """Return a heading of the second level."""
    return f'<h2>{_escape(words)}</h2>'


def text(words: str, *, alarm: bool = False) -> str:
    """Return a paragraph; an alarm has a mark."""
    return f'<p{" class=alarm" if alarm else ""}>{_escape(words)}</p>'


def pre(code: str) -> str:
    """Return lines of code."""
    return f'<pre tabindex="0"><code>{_escape(code)}</code></pre>'


def picture(png: bytes, alt: str, caption: str = '') -> str:
    """Return a picture.

    Args:
        png: the bytes of a PNG.
        alt: what it shows, for those who do not see it.
        caption: a line below it.
    """
    data = base64.b64encode(png).decode()
    below = f'<figcaption>{_escape(caption)}</figcaption>' if caption else ''
    return (
        f'<figure><img alt="{_escape(alt)}" src="data:image/png;base64,{data}">{below}'
        '</figure>'
    )


def gallery(pictures: Iterable[str]) -> str:
    """Return pictures side by side, as many as the screen has room for."""
    return f'<div class="pictures">{"".join(pictures)}</div>'


def details(summary: str, body: Iterable[str]) -> str:
    """Return parts that open with a click on their summary."""
    parts = '\n'.join(body)
    return f'<details><summary>{_escape(summary)}</summary>\n{parts}\n</details>'


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, sortable: bool = False
) -> str:
    """Return a table.

    Args:
        headings: those of its columns.
        rows: the cells of each row.
        sortable: whether a click on a heading sorts the rows.
    """
    shown, kind = [_escape(words) for words in headings], ''
    if sortable:
        shown = [f'<button type="button">{words}</button>' for words in shown]
        kind = ' class="sortable"'
    head = ''.join(f'<th>{words}</th>' for words in shown)
    body = '\n'.join(
        f'<tr>{"".join(_cell(cell) for cell in row)}</tr>' for row in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table{kind}>\n'
        f'<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _cell(cell: Cell) -> str:
    key = '' if cell.key is None else f' data-key="{_escape(str(cell.key))}"'
    kind = ' class="number"' if isinstance(cell.key, (int, float)) else ''
    return f'<td{kind}{key}>{cell.shown if cell.is_html else _escape(cell.shown)}</td>'


def _escape(words: str) -> str:
    return html.escape(words)
