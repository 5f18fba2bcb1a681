"""Pages that need no other file, in whatever browser there is."""

import html
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from gm_jax import html as pages
from gm_jax import plotting
from gm_jax.html import Cell

VOID = {'meta', 'img'}


class Checked(html.parser.HTMLParser):
    """Collects the elements, and what is not closed as it was opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.wrong, self.text = [], [], [], ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Keep an element."""
        self.elements.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag):
        """Close an element."""
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        """Keep text."""
        self.text += data


def check(text):
    """Check a page, and return it parsed."""
    page = Checked(text)
    assert not page.wrong and not page.open
    for tag, attributes in page.elements:
        for name in ('src', 'href'):
            assert attributes.get(name, 'data:').startswith('data:'), (tag, attributes)
        assert tag != 'img' or attributes['alt']
    return page


def _png(tmp_path):
    plotting.save_png(tmp_path / 'x.png', np.zeros((900, 900, 1), np.uint8))
    return (tmp_path / 'x.png').read_bytes()


def _make_page(tmp_path):
    cells = [('vae', 3.0), ('nade', None), ('made', 20.0), ('<b>', -1.0)]
    rows = [(Cell(name), Cell(str(x), x), Cell('y' * 300)) for name, x in cells]
    return pages.document('A <page> & more', [
        pages.text('1 < 2', alarm=True), pages.heading('"quoted"'),
        pages.table(('model', 'nats', 'long'), rows, sortable=True),
        pages.gallery([pages.picture(_png(tmp_path), 'what "it" shows', 'below')] * 3),
        pages.details('more', [pages.pre('python -m ' + 'x' * 500)]),
    ])


def test_a_page_is_well_formed(tmp_path):
    """Catch text that is taken for HTML, open elements, and files from elsewhere."""
    page = check(_make_page(tmp_path))
    for words in ('1 < 2', '"quoted"', '<b>', 'A <page> & more'):
        assert words in page.text
    assert ('b', {}) not in page.elements
    alts = [a['alt'] for tag, a in page.elements if tag == 'img']
    assert alts == ['what "it" shows'] * 3


# Runs inside a frame of the width of a phone: a window is never so narrow.
_PROBE = """<script>
const all = [...document.querySelectorAll('body *')];
const limit = document.documentElement.clientWidth + 1;
const wide = all.filter(e => !e.closest('.wide') && !e.closest('pre')
  && e.getBoundingClientRect().right > limit).map(e => e.outerHTML.slice(0, 80));
const column = () => [...document.querySelectorAll('tbody tr')].map(
  row => row.children[1].innerText);
const orders = [column()];
for (const _ of [1, 2]) {
  document.querySelectorAll('th button')[1].click();
  orders.push(column());
}
const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;
const width = document.documentElement.clientWidth;
const scrolls = document.documentElement.scrollWidth > width;
parent.document.body.innerText = JSON.stringify({wide, broken, orders, width, scrolls});
</script>"""


def in_a_browser(page, tmp_path, width):
    """Return what the script finds on a page in a frame of this width."""
    inner = html.escape(page.replace('</body>', f'{_PROBE}</body>'))
    path = tmp_path / 'frame.html'
    path.write_text(
        f'<!DOCTYPE html><body><iframe srcdoc="{inner}" '
        f'style="border: 0; width: {width}px; height: 800px"></iframe></body>'
    )
    return json.loads(re.search(r'<body>(\{.*\})', draw(path))[1])


def draw(path):
    """Return a page as a browser without a network has it once its scripts ran."""
    done = subprocess.run([
        'chromium', '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
        '--host-resolver-rules=MAP * ~NOTFOUND', '--virtual-time-budget=20000',
        '--dump-dom', f'file://{path}',
    ], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(not shutil.which('chromium'), reason='there is no Chromium here')
@pytest.mark.long
def test_in_a_browser(tmp_path):
    """Catch pictures that do not load, a table that does not sort, and overflow."""
    page = _make_page(tmp_path)
    found = in_a_browser(page, tmp_path, 360)
    assert found['width'] == 360 and not found['scrolls'] and found['wide'] == []
    assert found['broken'] == 0
    assert found['orders'] == [
        ['3.0', 'None', '20.0', '-1.0'], ['-1.0', '3.0', '20.0', 'None'],
        ['20.0', '3.0', '-1.0', 'None'],
    ]
    # A check that can fail.
    wider = page.replace('.wide, pre { overflow-x: auto; max-width: 100%; }', '')
    wider = wider.replace('data:image/png;base64,', 'data:image/png;base64,AAAA', 1)
    found = in_a_browser(wider, tmp_path, 360)
    assert found['scrolls'] and found['broken'] == 1
