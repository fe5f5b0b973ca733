"""`embedx extract`."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedx.cli.options import ConfigFileOption, with_config_options
from embedx.cli.output import (
    STDERR,
    STDOUT,
    DebugOption,
    JsonOption,
    count_text,
    facts_table,
    group_text,
    numbers_table,
    one_line,
    print_json,
    print_line,
)
from embedx.config import ExtractConfig
from embedx.errors import TooManyRejectedError
from embedx.heartbeat import Heartbeat
from embedx.store.format.layout import MANIFEST, staging_folder
from embedx.system import signals
from embedx.system.processes import start_fork_server
from embedx.system.torch_imports import import_torchvision
from embedx.values import size_text

if TYPE_CHECKING:
    from embedx.run.summary import Summary

_RESUMABLE = "; the same command goes on from what is committed"


@with_config_options(ExtractConfig)
def command(
    config: ExtractConfig,
    config_file: ConfigFileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: JsonOption = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show on stderr where the time went.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run a backbone over images and store the embeddings.

    Prints the path of the store's manifest. Running the same command again finishes what is missing.

    Exit codes: 0 complete, 1 failure, 2 usage, 3 more inputs rejected than --max-errors, 75 the store is held by
    another run, 130 and 143 interrupted.
    """
    STDERR.quiet = quiet
    # Before torch is imported: threads that spin while they wait would steal the decoders' cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if dry_run:
        import_torchvision()
        from embedx.run.extract import prepare

        description = prepare(config, download=False).describe()
        print_json(description) if as_json else _print_plan(description)
        return
    signals.advice = _RESUMABLE
    summary = _run(config)
    STDERR.print(_outcome(summary), soft_wrap=True)
    if profile and not summary.up_to_date:
        _print_profile(summary)
    if os.path.lexists(replacement := staging_folder(config.out.resolve())):
        STDERR.print(
            f"beside it an interrupted --overwrite or --update has left {replacement}; the same command as then goes "
            "on with it, and without need of it that folder can be removed",
            soft_wrap=True,
        )
    print_json(summary.to_json(), indent=None) if as_json else print_line(str(summary.manifest))
    if summary.rejected > config.max_errors:
        raise TooManyRejectedError(
            f"{count_text(summary.rejected, 'input')} rejected, and --max-errors allows {config.max_errors}; the store "
            f"is complete, `embedx info {config.out} --rejected` lists them with their reasons"
        )


def _run(config: ExtractConfig) -> Summary:
    plan = None
    with Heartbeat(STDERR) as heartbeat:
        if os.path.lexists(config.out / MANIFEST):
            from embedx.run.up_to_date import look_for_work

            heartbeat.say("listing the inputs")
            summary, plan = look_for_work(config)
            if summary is not None:
                return summary
        heartbeat.say("starting")
        start_fork_server()
        gc.disable()  # what is imported stays, and would be gone through again and again meanwhile
        import_torchvision()
        from embedx.run.extract import extract

        gc.freeze()  # else every collection of garbage would go through it later
        gc.enable()
        return extract(config, heartbeat, plan)


def _outcome(summary: Summary) -> str:
    from embedx.run.update import describe_counts

    if summary.up_to_date:
        return f"up to date: {count_text(summary.rows, 'row')}"
    rate = summary.timings.get("images_per_second")
    pace = f", {rate:.0f} images/s ({_means(summary)})" if rate else ""
    done = f"{count_text(summary.rows, 'row')}, {summary.rejected} rejected, in {summary.seconds:.1f} s"
    if summary.changes is None:
        return done + pace
    computed = count_text(int(summary.timings["inputs"]), "input")
    return f"updated, {computed} computed: {describe_counts(summary.changes)}\n{done}"


def _means(summary: Summary) -> str:
    means = summary.means
    threads = f", {count_text(int(means['threads']), 'thread')}" if "threads" in means else ""
    return f"{means['runtime']} on {means['device']}{threads}, {count_text(int(means['workers']), 'worker')}"


def _print_profile(summary: Summary) -> None:
    parts = ("loader_wait", "copy", "forward", "writer_wait", "callbacks")
    table = numbers_table("split", *(part.replace("_", " ") for part in parts), title="seconds of the loop")
    for split, seconds in summary.profile.items():
        table.add_row(one_line(split), *(f"{seconds.get(part, 0.0):.1f}" for part in parts))
    STDERR.print(table)
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
