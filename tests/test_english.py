"""Docstrings, comments, messages and documents avoid phrases that readers had to read twice."""

import ast
import functools
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("stunet", "data", "experiments")
MODULES = [
    path for folder in (*PACKAGES, "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"

BANNED = (
    "anew",
    "are told",
    "at once",
    "by itself",
    "heard",
    "is told",
    "made over",
    "meanwhile",
    "None where",
    "of one's own",
    "said_of",
    "what is given",
)
PHRASE = re.compile(rf"\b({'|'.join(map(re.escape, BANNED))})\b", re.IGNORECASE)
# "Of the sampler", "steps: of the sampler": fragments instead of descriptions.
FRAGMENT = re.compile(r"\A\s*of\b|^\s*[\w, *]+: of\b", re.IGNORECASE | re.MULTILINE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def nodes(path):
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def texts(path):
    """Yields (line, text) of every string literal and every block of comment lines."""
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    first, last, block = 0, 0, ""
    source = io.StringIO(path.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if line != last + 1:
            yield first, block
            first, block = line, ""
        last, block = line, f"{block} {token.string.lstrip('#')}"
    yield first, block


def documents():
    """Yields (name, line, text) of every line of the documents and of the notebook's text."""
    for path in DOCUMENTS:
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield path.relative_to(ROOT), line, text
    for cell, content in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        if content["cell_type"] == "markdown":
            yield f"{NOTEBOOK.name} cell", cell, "".join(content["source"])


def phrases(text):
    return sorted(set(PHRASE.findall(" ".join(text.split()))))


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_no_banned_phrase_in_code(package):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(words)}"
        for path in MODULES
        if path.relative_to(ROOT).parts[0] == package and path != Path(__file__)
        for line, text in texts(path)
        if (words := phrases(text))
    ]
    assert not found, "\n".join(found)


def test_no_banned_phrase_in_documents():
    found = [
        f"{name}:{line}: {', '.join(words)}"
        for name, line, text in documents()
        if (words := phrases(text))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_or_entry_starts_with_of(package):
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {match.group().strip()} ..."
        for path in MODULES
        if path.relative_to(ROOT).parts[0] == package
        for node in nodes(path)
        if isinstance(node, DOCUMENTED)
        and (match := FRAGMENT.search(ast.get_docstring(node) or ""))
    ]
    assert not found, "\n".join(found)
