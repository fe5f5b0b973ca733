"""The page that --help prints: usage, what the command does, its options by panel, examples; plain at 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from embedx.cli.output import STDOUT
from embedx.settings import PANELS

_WIDTH = 80
"""The columns of the page on a wider terminal, as long lines are hard to read."""
_OTHERS = "Options"
"""The panel of options that stand in no other."""
_INDENT = 28
"""The column at which the help of an option begins."""


class CommandWithPage(TyperCommand):
    """A command with such a page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the page."""
        formatter.write(_page(self, ctx, _options(self.get_params(ctx))))


class GroupWithPage(TyperGroup):
    """The program itself, with such a page, which lists its commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the page."""
        commands = [(name, (command.help or "").split("\n\n")[0]) for name, command in self.commands.items()]
        formatter.write(_page(self, ctx, {"Commands": commands, **_options(self.get_params(ctx))}))


def _page(command: Any, context: typer.Context, panels: dict[str, list[tuple[str, str]]]) -> str:
    width = min(_WIDTH, STDOUT.width)
    usage = textwrap.wrap(" ".join(_usage(command, context)), width, subsequent_indent=" " * 7)
    lines = [Text(line) for line in (*usage, "")]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [*map(Text, _wrapped(paragraph, width)), Text()]
    for title, entries in panels.items():
        lines.append(Text(title, style="bold"))
        for name, help_text in entries:
            lines += _entry(name, help_text, width)
        lines.append(Text())
    if command.epilog:
        lines.append(Text("Examples", style="bold"))
        for line in command.epilog.splitlines():
            lines.append(Text(f"  {line}", style="dim" if line.startswith("#") else ""))
    with STDOUT.capture() as capture:
        for line in lines:
            STDOUT.print(line, soft_wrap=True)
    return capture.get().rstrip("\n")


def _usage(command: Any, context: typer.Context) -> Iterator[str]:
    """Yields the parts of the first line: the command, the options that it needs, and its arguments."""
    yield f"Usage: {context.command_path}"
    for parameter in command.get_params(context):
        if parameter.param_type_name == "option" and parameter.required:
            yield f"{parameter.opts[0]} {parameter.metavar}"
    yield "[OPTIONS]"
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            name = parameter.metavar if parameter.required else f"[{parameter.metavar}]"
            yield f"{name}..." if parameter.nargs == -1 else name
    if hasattr(command, "commands"):
        yield "COMMAND ..."


def _options(parameters: Iterable[Any]) -> dict[str, list[tuple[str, str]]]:
    """Returns the entries of arguments and options by the panel that they stand in, in the page's order."""
    panels: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *PANELS, _OTHERS)}
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or _OTHERS
        panels[panel].append((_name(parameter), _help(parameter)))
    return {name: entries for name, entries in panels.items() if entries}


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    flags = sorted((*parameter.opts, *parameter.secondary_opts), key=lambda flag: flag.startswith("--"))
    text = (", " if len(flags[0]) == 2 else "/").join(flags)
    text = text if len(flags[0]) == 2 else f"    {text}"
    return text if parameter.is_flag else f"{text} {parameter.metavar}"


def _help(parameter: Any) -> str:
    text = parameter.help or ""
    default = parameter.default
    if parameter.required or default in (None, (), [], "") or isinstance(default, bool):
        return text
    shown = getattr(parameter, "show_default", True)
    default = f"{default:g}" if isinstance(default, float) else default
    return f"{text} Default: {default if shown is True else shown}." if shown else text


def _entry(name: str, help_text: str, width: int) -> Iterator[Text]:
    """Yields the lines of one entry; a long name has the first one for itself."""
    begin = Text(f"  {name}", style="cyan")
    lines = _wrapped(help_text, width - _INDENT)
    if len(begin) + 2 > _INDENT:
        yield begin
    elif lines:
        yield Text.assemble(begin, " " * (_INDENT - len(begin)), lines.pop(0))
    for line in lines:
        yield Text(" " * _INDENT + line)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
