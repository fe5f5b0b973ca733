"""`embedx report`: writes one page that shows what a store is, and which of its rows somebody should look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedx.cli.options import (
    ConfigFileOption,
    DebugOption,
    JsonOption,
    QuietOption,
    StoreArgument,
    with_config_options,
)
from embedx.cli.output import STDERR, print_json, print_line
from embedx.heartbeat import Heartbeat
from embedx.values import count_text, size_text
from embedx.vectors.reporting.report_config import ReportConfig

if TYPE_CHECKING:
    from embedx.vectors.reporting.report import ReportResult


EXAMPLES = """\
# one page: map, duplicates, leaks, outliers, doubtful labels, bad images
embedx report store --out report.html
# without pictures, for data that may not leave, and without t-SNE
embedx report store --out report.html --no-images --map pca
# the map coloured by a column of the index
embedx report store --out report.html --color camera"""
"""The examples on the help page."""


@with_config_options(ReportConfig)
def command(
    path: StoreArgument,
    config: ReportConfig,
    config_file: ConfigFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Write one HTML page about a store: a map of its rows, duplicates, leaks, outliers, doubtful labels, bad images.

    The page opens in any browser, without a network, and is at most 10 MB. Inputs are read again for small pictures,
    and checked by their sha256. Prints the path of the page. The same store, inputs, settings and machine give the
    same page.
    """
    config.validate()
    with Heartbeat(STDERR) as heartbeat:
        from embedx.api.store_verbs import report_by

        result = report_by(path, config, heartbeat)
    if as_json:
        print_json(result.to_json(), indent=None)
        return
    _tell(result)
    print_line(str(result.out))


def _tell(result: ReportResult) -> None:
    """Says on stderr what the page shows."""
    data = result.data
    for notice in data.notices:
        STDERR.print(notice, soft_wrap=True, markup=False, highlight=False)
    facts = data.duplicate_facts
    counts: list[tuple[str, int | None, int]] = [("duplicates", facts.rows, facts.rows_looked_at)]
    if len(data.leaks.splits) > 1:
        counts.append(("rows with a duplicate in another split", data.leaks.rows, facts.rows_looked_at))
    listed = {
        "outliers": data.outliers,
        "contradicted labels": data.contradicted,
        "broken rows": data.degenerate,
        "dark images": data.dark,
        "blurry images": data.blurry,
        "tiny images": data.tiny,
        "odd-shaped images": data.odd_shaped,
    }
    counts += [(name, found.count, found.looked_at) for name, found in listed.items()]
    found = ", ".join(
        f"{name} not known" if count is None else f"{count:,} {name} among {among:,}" for name, count, among in counts
    )
    shown = sum(picture.data is not None for picture in data.pictures)
    STDERR.print(
        f"{count_text(data.points.total_rows, 'row')}, {count_text(shown, 'picture')}, {size_text(result.bytes)}: "
        f"{found}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
