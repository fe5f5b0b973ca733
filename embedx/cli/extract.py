"""`embedx extract`: embeds images into a store."""

from __future__ import annotations

import contextlib
import gc
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedx.cli.failure import told_at_once
from embedx.cli.options import (
    ConfigFileOption,
    DebugOption,
    JsonOption,
    ProgressOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from embedx.cli.output import (
    STDERR,
    STDOUT,
    facts_table,
    group_text,
    numbers_table,
    print_json,
    print_line,
)
from embedx.config import ExtractConfig
from embedx.distribute.entry import run_extraction
from embedx.heartbeat import Heartbeat, event_line
from embedx.system import signals
from embedx.system.torch_imports import import_torchvision
from embedx.values import count_text, size_text

if TYPE_CHECKING:
    from embedx.run.summary import Summary


EXAMPLES = """\
# a folder of photographs, with a sub-folder of shards for each class
embedx extract --backbone resnet50 -o store --group-key class photos/
# two splits, and half the bytes on disk
embedx extract --backbone timm:vit_small_patch14_dinov2.lvd142m -o store \\
  --dtype float16 train=photos/train val=photos/val
# the same folder a week later: only what is new or has changed is computed
embedx extract --backbone resnet50 -o store --group-key class --update photos/"""
"""The examples on the help page."""


@with_config_options(ExtractConfig)
def command(
    config: ExtractConfig,
    config_file: ConfigFileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: JsonOption = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show on stderr where the time went.")] = False,
    progress: ProgressOption = "auto",
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a backbone over images and store the embeddings.

    Prints the path of the store's manifest. Running the same command again computes only the rows that are missing.

    Exit codes: 0 complete; 1 failed; 2 a setting, file or path has to change; 3 complete, but with unavailable
    inputs, or more rejected ones than --max-errors; 75 another run holds the store; 130 or 143 interrupted.
    """
    if progress == "json":
        signals.form = lambda text: event_line("message", text=text)
    heartbeat = Heartbeat(STDERR, form=progress, verbose=verbose)
    if dry_run:
        with heartbeat:
            import_torchvision()
            from embedx.run.prepare import prepare

            description = prepare(config, download=False, heartbeat=heartbeat).describe()
        print_json(description) if as_json else _print_plan(description)
        return
    signals.advice = "; the same command goes on from what is kept"
    title = shlex.join(["extract", "--backbone", config.backbone, "--out", str(config.out.absolute())])
    try:
        with heartbeat.frame(f"embedx {version('embedx')} {title}"), told_at_once():
            _report(config, run_extraction(config, heartbeat, _quick_imports()), as_json=as_json, profile=profile)
    finally:
        gc.unfreeze()  # else the caller's exit could not free what is frozen


def _report(config: ExtractConfig, summary: Summary | None, *, as_json: bool, profile: bool) -> None:
    if summary is None:  # the driver's process tells it
        return
    for line in _summary_lines(summary):
        STDERR.print(line, soft_wrap=True)
    for split in summary.kept:
        rows = count_text(summary.totals[split].rows, "row")
        STDERR.print(f"kept as they are: split {split} ({rows})", markup=False, soft_wrap=True)
    if profile and not summary.up_to_date:
        _print_profile(summary)
    from embedx.store.writing.held_place import interrupted_stores

    for folder in interrupted_stores(config.out.resolve()):
        STDERR.print(
            f"an interrupted --overwrite or --update left {folder}; run that command again to continue it, or "
            "delete the folder",
            soft_wrap=True,
        )
    print_json(summary.to_json(), indent=None) if as_json else print_line(str(summary.manifest))
    summary.check_inputs(config)


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Imports torch within the context in less time: without its compiler, and without collecting garbage."""
    gc.disable()  # imported modules stay: each collection meanwhile would only scan them again
    try:
        import_torchvision()
        yield
        gc.freeze()  # so would later collections, until the command ends
    finally:
        gc.enable()


def _summary_lines(summary: Summary) -> list[str]:
    from embedx.run.summary import describe_counts

    if summary.up_to_date:
        return [f"up to date: {count_text(summary.rows, 'row')}"]
    rate = summary.timings.get("images_per_second")
    pace = f", {rate:.0f} images/s ({_ran_on(summary)})" if rate else ""
    also = f"{summary.unavailable} unavailable, " if summary.unavailable else ""
    done = f"{count_text(summary.rows, 'row')}, {summary.rejected} rejected, {also}in {summary.seconds:.1f} s"
    if summary.changes is None:
        return [done + pace]
    computed = count_text(int(summary.timings["inputs"]), "input")
    return [f"updated, {computed} computed: {describe_counts(summary.changes)}", done]


def _ran_on(summary: Summary) -> str:
    ran_on = summary.ran_on
    prefix = "images_per_second/"
    rates = {name.removeprefix(prefix): rate for name, rate in summary.timings.items() if name.startswith(prefix)}
    if rates:
        each = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        return f"{ran_on['runtime']} on {count_text(len(rates), 'member')}: {each}"
    threads = f", {count_text(int(ran_on['threads']), 'thread')}" if "threads" in ran_on else ""
    return f"{ran_on['runtime']} on {ran_on['device']}{threads}, {count_text(int(ran_on['workers']), 'worker')}"


def _print_profile(summary: Summary) -> None:
    parts = ("loader_wait", "copy", "forward", "writer_wait", "callbacks")
    table = numbers_table("split", *(part.replace("_", " ") for part in parts), title="seconds of the loop")
    for split, seconds in summary.profile.items():
        table.add_row(split, *(f"{seconds.get(part, 0.0):.1f}" for part in parts))
    STDERR.print(table)
    if summary.trial:
        tried = numbers_table("runtime", "images/s, forward alone", "seconds to build", title="runtimes tried")
        for name, (rate, seconds_to_build) in summary.trial.items():
            tried.add_row(name, f"{rate:,.1f}", f"{seconds_to_build:.1f}")
        STDERR.print(tried)
    STDERR.print(summary.verdict, soft_wrap=True)


def _print_plan(plan: dict[str, Any]) -> None:
    facts = {}
    for name, value in plan.items():
        if name != "splits":
            text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
            facts[name] = str(text)
    STDOUT.print(facts_table(facts))
    table = numbers_table("split", "group", "inputs", "units", "input size", "output size")
    for name, split in plan["splits"].items():
        sizes = size_text(split["input_bytes"]), size_text(split["output_bytes"])
        table.add_row(name, "", str(split["inputs"]), str(split["units"]), *sizes)
        for group in split["groups"]:
            table.add_row("", group_text(group["group"]), str(group["inputs"]), "", "", "")
    STDOUT.print(table)
