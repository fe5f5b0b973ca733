"""Every option that a message, a help text or a docstring of the package names is one that its command takes."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import embedx
from tests.cli.calls import COMMANDS, PROGRAM

PACKAGE = Path(embedx.__file__).parent
OPTIONS = {
    name: {flag: option for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    | dict.fromkeys(("--help", "-h"))
    for name, command in COMMANDS.items()
}
OF_PROGRAM = {flag for option in PROGRAM.params for flag in option.opts} | {"--install-completion", "--show-completion"}
"""Options that stand before the command."""
UNKNOWN = "\0"
"""The place of a value that an f-string computes."""
OPTION = re.compile(
    r"(?<![\w./-])(?P<flag>--[a-z][a-z0-9-]*|-[a-zA-Z0](?![\w-]))"  # not -print0
    r"(?:[ =](?P<value>[^\s`'\"|;:)]+))?"
)
CALL = re.compile(r"embedx (?P<command>[a-z]+)(?P<arguments>(?: [^`\n]*)?)")
OTHERS = {"-m", "-c", "-d", "--sparse"}
"""Options of python, gzip and tar."""
PROSE = re.compile(
    "a|allow(s|ed)?|also|an?|and|are|as|at|begins|both|can|continues|converges|does|finds|for|from|gives|has|helps?|if|in|"
    "is|it|lists|names|needs|not|of|on|or|runs?|says|sets|starts|takes|than|that|the|to|was|were|which|with"
)
"""Words that may follow a flag in a sentence without being its value."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """The string constants of a module, each with its line; an f-string is one text."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(map(id, ast.walk(node)))
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else UNKNOWN for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


RAISED_BY = {
    "cli/options.py": set(COMMANDS),
    "cli/output.py": set(COMMANDS),
    "cli/foreign_errors.py": set(COMMANDS),
    **{f"cli/{name}.py": {name} for name in COMMANDS},
    "cli/help.py": set(COMMANDS),
    "cli/backbones.py": {"backbones", "extract"},
    "cli/layers.py": {"layers", "extract"},
    "vectors/probing/": {"probe"},
    "vectors/searching/": {"search"},
    "vectors/indexing/": {"index", "search"},
    "vectors/pairs/": {"duplicates", "report"},
    "vectors/reporting/": {"report"},
    "vectors/exporting/": {"export"},
    "vectors/": {"search", "index", "duplicates", "report", "export"},
    "errors.py": {"extract", "duplicates"},
    "callbacks/": {"extract", "probe"},
    "store/reading/compare.py": {"compare"},
    "store/reading/drift.py": {"compare"},
    "store/writing/repair.py": {"repair"},
    "run/recompute.py": {"verify"},
    "run/stored_job.py": {"verify"},
    "run/row_checker.py": {"verify"},
    "models/": {"extract", "layers"},
    "": {"extract"},
}
"""The commands that raise a module's messages, by the first of these that its path begins with."""


def raised_by(path: Path) -> set[str]:
    place = path.relative_to(PACKAGE).as_posix()
    return next(commands for begin, commands in RAISED_BY.items() if place.startswith(begin))


def faults_of(text: str, commands: Collection[str] = COMMANDS) -> Iterator[str]:
    """What is wrong with the options that a text names: those of one command where it is named before them.

    Elsewhere they are those of one of the commands that raise the message, or that it names.
    """
    calls = [(match.start("arguments"), match.end(), match["command"]) for match in CALL.finditer(text)]
    for match in OPTION.finditer(text):
        own = [name for start, end, name in calls if start <= match.start() < end and name in COMMANDS]
        flag, value = match["flag"], (match["value"] or "").rstrip(".,")
        named = {command for start, _, command in calls if start <= match.start() and command in COMMANDS}
        takers = [name for name in own or {*commands, *named} if flag in OPTIONS[name]]
        if flag in OTHERS or (flag in OF_PROGRAM and not own):
            continue
        if not takers:
            yield f"{flag} is no option of {' or '.join(own or words_of(commands))}"
        elif is_literal(value) and not any(accepts(name, flag, value) for name in takers):
            yield f"{flag} does not take {value}"


def words_of(commands: Collection[str]) -> list[str]:
    return ["any command"] if len(commands) == len(COMMANDS) else sorted(commands)


def is_literal(value: str) -> bool:
    """Whether it is a value that can be given, and neither a placeholder nor the next word of a sentence."""
    return bool(value) and not (UNKNOWN in value or PROSE.fullmatch(value) or value.isupper() or value.startswith("-"))


def accepts(name: str, flag: str, value: str) -> bool:
    """Whether the command takes this value, or the option none; the command itself is not run."""
    if getattr(OPTIONS[name][flag], "is_flag", True):
        return True
    command = COMMANDS[name]
    needed = [option.opts[0] for option in command.params if option.required]
    given = itertools.chain(*([each, "1"] if each.startswith("-") else ["1"] for each in needed))
    try:
        command.make_context(name, [*given, flag, *[value] * OPTIONS[name][flag].nargs])
    except Exception as error:  # noqa: BLE001  (typer's or click's own, by the version of typer)
        assert type(error).__name__ == "BadParameter", error
        return False
    return True


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_advised_options_are_parsed_by_their_command(path: Path) -> None:
    faults = [
        f"{path}:{line}: {fault}"
        for line, text in texts(path.read_text())
        for fault in faults_of(text, raised_by(path))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("store less with --dtype fp16, or wait", "--dtype does not take fp16"),
        ("store less with --dtype float16, or wait", None),
        ("`embedx verify --overwrite` helps", "--overwrite is no option of verify"),
        ("`embedx verify STORE --recompute 20` helps", None),
        ("give --bach-size 3", "--bach-size is no option of any command"),
        ("give -b many", "-b does not take many"),
        (f"--dtype {UNKNOWN} and --weights random name", None),
        ("-k is 5", None),
    ],
)
def test_a_wrong_option_is_found(text: str, fault: str | None) -> None:
    assert list(faults_of(text)) == ([fault] if fault else [])


def test_a_message_names_the_options_of_the_command_that_raises_it() -> None:
    assert list(faults_of("give --l2 1e-3", raised_by(PACKAGE / "vectors" / "probing" / "linear.py"))) == []
    assert list(faults_of("give --dtype float16", raised_by(PACKAGE / "vectors" / "probing" / "linear.py"))) == [
        "--dtype is no option of probe"
    ]


def test_an_f_string_is_one_text() -> None:
    assert list(texts('a = f"--dtype {b} --seed " "3"\nc = "--quiet"')) == [(1, "--dtype \0 --seed 3"), (2, "--quiet")]
