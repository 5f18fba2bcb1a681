"""What `make lint` checks besides ruff and mypy: docstrings, ignored types, `__all__`.

The fields of a public NamedTuple are described where `help` shows it, and completion
offers what a module defines, not what it imports.

    python -m tests.lint
"""

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

FOLDERS = 'gm_jax', 'experiments', 'benchmarks', 'tests'
SECTION = re.compile(
    r'( *)(Args|Attributes|Examples|Raises|References|Returns|Yields):$'
)
IGNORED = re.compile(r'#\s*type:\s*ignore')
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# Third person, such as "Returns"; not "Pass" or "Bias".
THIRD_PERSON = re.compile(r'[A-Z][a-z]+([^s]s|sses)$')


def main() -> int:
    """Check every file; the exit status is 1 if a line is not as it should be."""
    wrong = 0
    for folder in FOLDERS:
        for path in sorted(pathlib.Path(folder).rglob('*.py')):
            for line, message in problems(path.read_text()):
                print(f'{path}:{line}: {message}')
                wrong += 1
    return int(wrong > 0)


def problems(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a module that are not as they should be, and why."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    for number, comment in comments.items():
        if IGNORED.match(comment) and number - 1 not in comments:
            yield number, 'a comment above must say why a type is ignored'
    tree = ast.parse(source)
    exported = _exported(tree)
    for name in _defined(tree) - exported if exported else ():
        yield 1, f'`{name}` needs an underscore or a place in `__all__`'
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | FUNCTIONS):
            continue
        text = ast.get_docstring(node, clean=False)
        if text is None:
            continue
        first = node.body[0].lineno
        for name in _undescribed(node, text):
            yield first, f'`Attributes:` must say what `{name}` is'
        word, *_ = text.split()
        if isinstance(node, FUNCTIONS) and THIRD_PERSON.match(word):
            yield first, f'"{word}" must be in imperative mood'
        for number in _wrongly_indented(text.splitlines()):
            yield first + number, 'the lines of a section are indented by 4'


def _exported(tree: ast.Module) -> set[str]:
    """Return what `__all__` lists, nothing where there is none."""
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name('__all__')], value):
                return set(ast.literal_eval(value))
            case ast.AnnAssign(ast.Name('__all__'), value=ast.expr() as value):
                return set(ast.literal_eval(value))
    return set()


def _defined(tree: ast.Module) -> set[str]:
    """Return the public functions and classes of a module."""
    definitions = [
        node.name for node in tree.body
        if isinstance(node, FUNCTIONS | ast.ClassDef)
    ]
    return {name for name in definitions if not name.startswith('_')}


def _undescribed(node: ast.AST, text: str) -> Iterator[str]:
    """Yield the fields of a public NamedTuple that its docstring leaves out."""
    if not isinstance(node, ast.ClassDef) or node.name.startswith('_'):
        return
    if any(ast.unparse(base) == 'NamedTuple' for base in node.bases):
        for line in node.body:
            if isinstance(line, ast.AnnAssign):
                name = ast.unparse(line.target)
                if not re.search(rf'^ +(\w+, )*{name}(, \w+)*: ', text, re.M):
                    yield name


def _wrongly_indented(lines: list[str]) -> Iterator[int]:
    for number, (head, line) in enumerate(zip(lines, lines[1:]), 1):
        section = SECTION.fullmatch(head)
        if section and len(line) - len(line.lstrip()) != len(section[1]) + 4:
            yield number


if __name__ == '__main__':
    sys.exit(main())
