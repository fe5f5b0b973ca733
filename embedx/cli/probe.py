"""`embedx probe`: measures how well a store's targets can be predicted from its embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedx.cli.options import (
    ConfigFileOption,
    DebugOption,
    JsonOption,
    QuietOption,
    StoreArgument,
    plainly,
    with_config_options,
)
from embedx.cli.output import STDERR, STDOUT, facts_table, numbers_table, print_json
from embedx.errors import ConfigError
from embedx.heartbeat import Heartbeat
from embedx.paths import StorePath, local_path
from embedx.system import signals
from embedx.vectors.probing.probe_config import ProbeConfig

if TYPE_CHECKING:
    from embedx.vectors.probing.probe_result import ProbeResult


_MOST_LISTED = 200
"""The number of classes up to which each is listed."""
_MISTAKES = 20
"""The number of mistakes that are listed where the classes are more."""


EXAMPLES = """\
# a linear probe, learned on split train, tested on split val
embedx probe store
# nearest neighbours instead, and a picture of what is mistaken for what
embedx probe store --method knn --neighbours 10 --plot confusion.png"""
"""The examples on the help page."""


@with_config_options(ProbeConfig)
def command(
    path: StoreArgument,
    config: ProbeConfig,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="PNG file to draw the confusion matrix into.", metavar="PATH", parser=plainly(local_path)
        ),
    ] = None,
    config_file: ConfigFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a classifier on the embeddings of one split, and test it on another split.

    Prints the accuracy, also per class. The same store, settings and number of threads give the same numbers and the
    same head, bit for bit.
    """
    config.validate()
    if plot is not None and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        fault = "it is a folder" if plot.is_dir() else f"there is no folder {plot.parent}"
        raise ConfigError(f"--plot {plot}: {fault}; choose another path")
    if config.out is not None:
        signals.advice = "; the same command with --resume goes on from the last checkpoint"
    with Heartbeat(STDERR) as heartbeat:
        from embedx.store.reading.attempts import start_anew

        result = start_anew(lambda: _probe(path, config, heartbeat))
    if not result.converged:
        STDERR.print("the fit has not converged; a larger --l2 converges sooner", style="bold magenta")
    if plot is not None:
        _write_plot(result, plot)
    print_json(result.to_json(), indent=None) if as_json else _print(result)


def _probe(path: StorePath, config: ProbeConfig, heartbeat: Heartbeat) -> ProbeResult:
    from embedx.store.reading.reader import Store
    from embedx.vectors.probing.probe import probe

    store = Store.open(path)
    if not store.complete:
        STDERR.print(f"{path} is not complete: the rows committed so far are probed", soft_wrap=True)
    return probe(store, config, heartbeat)


def _write_plot(result: ProbeResult, plot: Path) -> None:
    from embedx.store.format.atomic import write_atomic
    from embedx.vectors.probing.confusion_plot import confusion_png

    try:
        write_atomic(plot.absolute(), confusion_png(result))
    except OSError as error:
        raise ConfigError(f"--plot {plot}: can't be written ({error.strerror}); choose another path") from error


def _print(result: ProbeResult) -> None:
    facts = {
        "store": str(result.store),
        "method": f"{result.method}, " + ", ".join(f"{name} {value:g}" for name, value in result.settings.items()),
        "learned on": f"{result.train}, {result.train_rows} rows",
        "tested on": f"{result.test}, {result.test_rows} rows",
        "top-1": f"{result.top1:.4f}",
    }
    if result.top5 is not None:
        facts["top-5"] = f"{result.top5:.4f}"
    facts["mean class accuracy"] = f"{result.mean_class_accuracy:.4f}"
    if result.average_precision is not None:
        facts["average precision"] = f"{result.average_precision:.4f} of {result.classes[1].name}"
    if result.head is not None:
        facts["head"] = str(result.head)
    if len(result.classes) > _MOST_LISTED:
        facts["classes"] = f"{len(result.classes)}, of which these are most often mistaken"
    STDOUT.print(facts_table(facts))
    if len(result.classes) > _MOST_LISTED:
        _print_mistakes(result)
        return
    table = numbers_table("class", "learned on", "tested on", "right", "accuracy", "mistaken for")
    for each in result.classes:
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.4f}"
        numbers = (each.train_rows, each.rows, each.correct)
        table.add_row(each.name, *map(str, numbers), accuracy, each.mistaken_for or "")
    STDOUT.print(table)


def _print_mistakes(result: ProbeResult) -> None:
    table = numbers_table("class", "mistaken for", "rows")
    for mistake in result.mistakes[:_MISTAKES]:
        table.add_row(result.classes[mistake.place].name, result.classes[mistake.predicted].name, str(mistake.rows))
    STDOUT.print(table)
    STDERR.print("--json lists each class", soft_wrap=True)
