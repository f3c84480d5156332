"""Plain technical English in identifiers, docstrings and comments: a floor, held by a list of words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = (
    *("astray", "deaf", "heard", "said", "told", "aloud", "whoever", "nobody", "anew", "wanted", "shelf", "shelves"),
    *("appetite", "at_the_door", "blunt", "sandwich", "known_as", "as_made", "as_given", "nowhere", "looked"),
)
PREPOSITIONS = (
    *("of", "for", "in", "on", "at", "to", "by", "with", "without", "from", "as", "after", "before", "between"),
    *("under", "over", "beside", "below", "above", "into", "through", "per", "than"),
)
SECTIONS = ("Args:", "Attributes:")
PROSE = re.compile(r"\b(" + "|".join(w.replace("_", "[ _]") for w in FORBIDDEN) + r")\b", re.IGNORECASE)
FIELD = re.compile(r"^(\s+)(\*{0,2}\w+)(?: \([^)]*\))?: (\S+)")
PROGRAM = [*sorted((ROOT / "ifloo").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
HELPERS = [p for p in sorted((ROOT / "tests").rglob("*.py")) if not p.name.startswith("test_")]


def _words(identifier: str) -> str:
    """The parts of an identifier in lower case, joined by underscores, with one at either end."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", identifier).lower().strip("_")
    return f"_{parts}_"


def _identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.alias):
            yield node.lineno, node.asname or node.name


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _faults(source: str) -> list[str]:
    tree = ast.parse(source)
    found = {
        (line, f"identifier {name}")
        for line, name in _identifiers(tree)
        if any(f"_{word}_" in _words(name) for word in FORBIDDEN)
    }
    for line, text in (*_docstrings(tree), *_comments(source)):
        found |= {(line, f"{match[0]!r} in prose") for match in PROSE.finditer(text)}
    for line, text in _docstrings(tree):
        found |= {(line, fault) for fault in _fragments(text)}
    return [f"line {line}: {fault}" for line, fault in sorted(found)]


def _fragments(docstring: str) -> Iterator[str]:
    """Descriptions of fields and arguments that begin with a preposition: they do not stand alone."""
    section = None
    for line in docstring.splitlines():
        if line.strip().endswith(":") and " " not in line.strip():
            section = line.strip()
        elif section in SECTIONS and (match := FIELD.match(line)) and match[3].lower() in PREPOSITIONS:
            yield f"{match[2]}: a description that begins with {match[3]!r}"


@pytest.mark.parametrize("path", [*PROGRAM, *HELPERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_prose_is_plain(path):
    assert not _faults(path.read_text()), f"{path.relative_to(ROOT)}: " + "; ".join(_faults(path.read_text()))


def test_each_kind_of_fault_is_seen():
    source = '''
def as_made(seed):  # nobody knows
    """Says what was told.

    Args:
        seed: of the fit.
        other: Random seed.
    """
    heard = seed
'''
    assert _faults(source) == [
        "line 2: 'nobody' in prose",
        "line 2: identifier as_made",
        "line 3: 'told' in prose",
        "line 3: seed: a description that begins with 'of'",
        "line 9: identifier heard",
    ]
