"""The pages of the documentation: their links, and the site that is made of them."""

import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest

from tests import test_html

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([
    *ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('docs/[a-z]*/*.md'),
    *ROOT.glob('results/**/*.md'),
])
_CODE = re.compile(r'^```.*?^```|`[^`\n]+`', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'\]\(([^)\s]+)\)')


def _anchors(text: str) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', _CODE.sub('', text), re.MULTILINE)
    return {
        re.sub(r'[^\w\- ]', '', heading).strip().lower().replace(' ', '-')
        for heading in headings
    }


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(page):
    """Catch a link to a file or a heading that is not there."""
    for link in _LINK.findall(_CODE.sub('', page.read_text())):
        if link.startswith('https://'):
            continue
        assert '://' not in link, link
        path, _, anchor = urllib.parse.unquote(link).partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in _anchors(target.read_text()), link


def test_numbers_of_the_front_page():
    """Catch a number in README.md that is not in results/README.md."""
    lines = (ROOT / 'results/README.md').read_text().splitlines()
    page = (ROOT / 'README.md').read_text()
    _, _, rest = page.partition('| model | here | published')
    rows = rest.split('\n\n')[0].splitlines()[2:]
    assert rows
    for row in rows:
        *_, here, published = (cell.strip() for cell in row.strip('|').split('|'))
        assert any(f'| {here} | {published} |' in line for line in lines), row


@pytest.mark.long
def test_site(tmp_path):
    """Catch a warning, a cell that fails, and a link or picture that is not there."""
    built = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-d',
         str(tmp_path / 'trees'), 'docs', str(tmp_path / 'html')],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    site = tmp_path / 'html'
    pages = {
        path: test_html.Checked(path.read_text()).elements
        for path in site.rglob('*.html')
        if '_static' not in path.parts  # templates of the theme
    }
    assert len(pages) > 25
    anchors = {
        path: {a[key] for _, a in elements for key in ('id', 'name') if a.get(key)}
        for path, elements in pages.items()
    }
    for path, elements in pages.items():
        assert all(a.get('alt') for tag, a in elements if tag == 'img'), path
        loaded = [a['src'] for _, a in elements if a.get('src')] + [
            a['href'] for tag, a in elements if tag == 'link' and a.get('href')
        ]
        assert not [link for link in loaded if link.startswith('http')], path
        links = {a[key] for _, a in elements for key in ('href', 'src') if a.get(key)}
        for link in links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ('https', 'data', 'mailto'), (path, link)
                continue
            local = urllib.parse.unquote(parts.path)
            target = (path.parent / local).resolve() if local else path
            assert target.exists(), (path, link)
            if parts.fragment and target in pages:
                assert parts.fragment in anchors[target], (path, link)
    if shutil.which('chromium'):
        with_formulas = [path for path in pages if 'class="math' in path.read_text()]
        assert len(with_formulas) > 8
        for path in with_formulas:
            _check_formulas(path)


def _check_formulas(path):
    """Check that a browser without a network draws all formulas of a page."""
    page = test_html.draw(path)
    num = len(re.findall('class="math notranslate', path.read_text()))
    assert len(re.findall('<mjx-container', page)) >= num > 0, path
    assert 'data-mjx-error' not in page, path
