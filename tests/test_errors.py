from __future__ import annotations

import ast
import re
from pathlib import Path

from embedx import errors
from embedx.errors import ConfigError, unknown


def bases_of_classes() -> dict[str, list[str]]:
    """The classes of the package by name, on the syntax tree, each with the names of its bases."""
    trees = (ast.parse(path.read_text()) for path in Path(errors.__file__).parent.rglob("*.py"))
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name: [base.id for base in node.bases if isinstance(base, ast.Name)] for node in classes}


def test_the_tree_at_the_top_of_the_file_names_every_error_of_the_package_with_its_exit_code() -> None:
    assert errors.__doc__ is not None
    tree = dict(re.findall(r"^[│├└─ ]*(\w+Error) +(\d+)  \w", errors.__doc__, re.MULTILINE))
    found = {"EmbedxError"}
    bases = bases_of_classes()
    while new := {name for name in bases.keys() - found if found.intersection(bases[name])}:
        found |= new
    assert tree.keys() == found
    assert tree == {name: str(getattr(errors, name).exit_code) for name in found}


def test_a_config_error_tells_all_faults() -> None:
    error = ConfigError(["one", "two"])
    assert error.faults == ["one", "two"] and str(error) == "one\ntwo"
    ConfigError.check([])


def test_unknown_names_the_nearest_or_lists_a_few_or_counts_many() -> None:
    assert "did you mean resnet50?" in unknown("backbone", "resnet5", ["resnet50", "vit"])
    assert "valid: a, b" in unknown("thing", "zzz", ["b", "a"])
    assert "valid: none" in unknown("thing", "zzz", [])
    assert "there are 20 valid ones" in unknown("thing", "zzz", [f"name{i}" for i in range(20)])
