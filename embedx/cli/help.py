"""`embedx help`: shows the manual, whose pages are the files of embedx/docs."""

from __future__ import annotations

import html
import os
import re
import shutil
import string
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.theme import Theme

from embedx.cli.options import DebugOption, plainly
from embedx.cli.output import STDERR, STDOUT, facts_table, print_line
from embedx.errors import ConfigError, EmbedxError, unknown
from embedx.paths import local_path
from embedx.system.passing import passing_error

if TYPE_CHECKING:
    from rich.console import RenderableType

DOCS = Path(__file__).parent.parent / "docs"
TOPICS = (
    "sources",
    "backbones",
    "checkpoints",
    "preprocessing",
    "speed",
    "devices",
    "store",
    "running-again",
    "verify",
    "probe",
    "search",
    "index",
    "duplicates",
    "report",
    "export",
    "unattended",
    "buckets",
    "python",
    "extending",
    "design",
)
"""The pages, in the order in which they are listed."""
WIDEST = 100
"""The widest text on a terminal, in columns: longer lines are hard to read."""
PLAIN = Theme({"markdown.code": "bold", "markdown.item.bullet": "bold", "markdown.block_quote": "none"})
"""Styles that are readable on dark and on light terminals; Rich's own paint code on black."""
FENCE = re.compile(r"^```\w+", re.MULTILINE)
PICTURE = re.compile(r"^<picture>\n.*?^</picture>\n+", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([\w-]+)\.md\)")

_LISTS = "(`embedx help` lists the pages, `embedx --help` the commands)"

EXAMPLES = """\
# what --data takes
embedx help sources
# all pages for a browser
embedx help --web manual.html"""
"""The examples on the help page."""


def command(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(metavar="TOPIC", help="Page of the manual, or a command.", autocompletion=lambda: [*TOPICS]),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(
            "--web", metavar="FILE", help="Write all pages to one HTML file instead.", parser=plainly(local_path)
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show the manual: the list of topics, or the page of one.

    On a terminal a page is shown in a pager, elsewhere as the Markdown that it is. The name of a command without a
    page shows its options.
    """
    if web is not None:
        if topic is not None:
            raise ConfigError(f"--web writes all pages to one file; leave out {topic}")
        try:
            web.write_text(web_page(), encoding="utf-8")
        except OSError as error:
            if passing_error(error):
                raise EmbedxError(f"--web {web}: {error.strerror}; once that is mended, run it again") from error
            raise ConfigError(
                f"--web {web}: {error.strerror}; give a file in a folder that is there and can be written to"
            ) from error
        print_line(str(web))
    elif topic is None:
        STDOUT.print(facts_table({name: summary(page(name)) for name in TOPICS}))
        STDERR.print("`embedx help TOPIC` shows a page, `embedx COMMAND --help` a command's options")
    elif topic in TOPICS:
        _show(page(topic))
    else:
        commands: Any = context.find_root().command
        if topic not in commands.commands:
            raise ConfigError(unknown("topic", topic, {*TOPICS, *commands.commands}, hint=_LISTS))
        commands.main([topic, "--help"], prog_name="embedx", standalone_mode=False)


def page(topic: str) -> str:
    """Reads a page: Markdown whose first two paragraphs are its title and its line in the list of topics."""
    return (DOCS / f"{topic}.md").read_text(encoding="utf-8")


def summary(text: str) -> str:
    """Returns a page's line in the list of topics."""
    return text.split("\n\n", 2)[1]


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        for line in text.splitlines():
            print_line(line)
        return
    os.environ.setdefault("LESS", "FRX")  # as git does: colours, and no pager for what fits on the screen
    for name in ("MANPAGER", "PAGER"):
        program, *_ = [*os.environ.get(name, "").split(), ""]
        if program and "=" not in program and shutil.which(program) is None:
            STDERR.print(f"{name} is {os.environ.pop(name)}, and there is no such program: it is not used")
    with STDOUT.use_theme(PLAIN), STDOUT.pager(styles=True):
        STDOUT.print(rendered(text), width=min(STDOUT.width, WIDEST))


def rendered(text: str) -> RenderableType:
    """Returns a page for a terminal; a link to another page becomes the command that shows it."""
    from rich.markdown import Markdown

    plain = FENCE.sub("```text", LINK.sub(r"`embedx help \2`", text))
    return Markdown(plain, code_theme="ansi_dark", hyperlinks=False)  # a theme without a background


def web_page() -> str:
    """Makes one HTML page of all topics: it needs no other file, and follows the reader's light or dark setting.

    It has no pictures, as those would have to come from elsewhere.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    articles, contents = [], []
    for topic in TOPICS:
        text = page(topic)
        tokens = parser.parse(LINK.sub(r"[\1](#\2)", PICTURE.sub("", text)))
        for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
            if token.type in ("heading_open", "heading_close"):
                if token.type == "heading_open" and inside is not None:
                    token.attrSet("id", topic if token.tag == "h1" else f"{topic}-{_anchor(inside.content)}")
                token.tag = f"h{int(token.tag[1]) + 1}"
        articles.append(f"<article>\n{parser.renderer.render(tokens, parser.options, {})}</article>")
        contents.append(f'<li><a href="#{topic}">{topic}</a> {html.escape(summary(text))}</li>')
    template = string.Template((DOCS / "web.html").read_text(encoding="utf-8"))
    return template.substitute(contents="\n".join(contents), articles="\n".join(articles))


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w]+", "-", heading.lower()).strip("-")
