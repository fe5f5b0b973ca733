"""Rules about the package's prose: a docstring is a sentence that is understood at the first reading."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

import embedx

PACKAGE = Path(embedx.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
RIDDLES = re.compile(r"(?:Of|What|Whether|As|Those|Where|By|That|Which)\b")
"""Words that begin a fragment, and not a sentence."""
THIRD_PERSON = re.compile(r"(?:[A-Z][a-z]+s|Hook)\b")
"""The beginning of a function's docstring: a verb as in "Returns"; a callback's hooks are nouns."""


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The docstrings of a module: its own, those of classes and functions, and those under a name or field."""
    for node in ast.walk(tree):
        for statement in body if isinstance(body := getattr(node, "body", None), list) else ():
            match statement:
                case ast.Expr(ast.Constant(str(text))):
                    yield statement.lineno, text


def arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """The names and descriptions in a docstring's Args section."""
    lines = docstring.expandtabs().splitlines()
    begin = next((number for number, line in enumerate(lines) if line.strip() == "Args:"), None)
    if begin is None:
        return
    indent = len(lines[begin]) - len(lines[begin].lstrip())
    section: list[str] = []
    for line in lines[begin + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        section.append(line[indent:])
    for match in re.finditer(r"^ {4}(\*{0,2}\w+): (.*(?:\n {5,}\S.*)*)", "\n".join(section), re.MULTILINE):
        yield match[1], " ".join(match[2].split())


def is_plain_function(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Whether it is a function whose docstring has a verb: no property, and no command, whose docstring is its help."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name == "command":
        return False
    return not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_docstrings_are_sentences(path: Path) -> None:
    faults = []
    for line, text in docstrings(ast.parse(path.read_text())):
        if RIDDLES.match(text.strip()):
            faults.append(f"{path}:{line}: begins with {text.split()[0]}: {text.strip()[:80]!r}")
        for name, description in arguments(text):
            if len(description.split()) <= 2:
                faults.append(f"{path}:{line}: the argument {name} is described in two words or fewer: {description!r}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_function_s_docstring_begins_with_a_verb(path: Path) -> None:
    faults = []
    for node in filter(is_plain_function, ast.walk(ast.parse(path.read_text()))):
        text = ast.get_docstring(node)
        if text and not THIRD_PERSON.match(text):
            faults.append(
                f"{path}:{node.lineno}: begins with {text.split()[0]}, and not as in Returns or Reads: {text[:80]!r}"
            )
    assert not faults, "\n".join(faults)
