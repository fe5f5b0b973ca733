"""The page of a report: one HTML file that needs no other, no network and no library.

It is made of a template, a style sheet and scripts in the folder `page`. Lists are written by jinja2, which escapes
them; the map's columns are packed into one deflated string that the page unpacks; pictures are one string of base64
that is cut when they are seen.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from embedx.values import count_text
from embedx.vectors.reporting.report_data import Categories, Findings, Member, Points, ReportData

LARGEST = 10_000_000
"""The largest page in bytes: mail servers refuse larger ones. Pictures that don't fit are left out."""
_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("data.js", "pictures.js", "view.js", "paint.js", "gestures.js", "colours.js", "panel.js", "main.js")
_SHORT = 400
"""The longest text in a list, in letters; the map's panel shows all of it."""
_TEXTS = (6_000_000, 2_000_000)
"""The most letters in one column of texts, beyond which long ones are cut."""
_PACKED = 7_000_000
"""The most bytes of the packed columns. The first of `_TEXTS` with which they are no more is taken; if there is none,
the last columns are left out."""
_CUT = "Long texts are cut, as the page would be above 10 MB."
_TOO_LARGE = "left out: the page would be too large"
_UNWANTED = "no pictures in this report"


class _Packing(NamedTuple):
    """The points' columns, as the page has them."""

    directory: dict[str, Any]
    """The place of each column in `packed`, and the names of categories."""
    packed: str
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes that it takes in the page."""
        return len(self.packed) + len(htmlsafe_json_dumps(self.directory))


def render(data: ReportData) -> bytes:
    """Returns the page as the bytes of an HTML file.

    Args:
        data: The contents, of which every text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "parts": _parts, "share": _share, "short": _short}
    environment.policies["json.dumps_kwargs"] = {}
    style, script = (_FOLDER / "report.css").read_text(encoding="utf-8"), _script()
    fixed = {
        "data": data,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "no_picture": "no picture kept" if data.images_shown else _UNWANTED,
        "class_totals": [sum(each.rows) for each in data.classes],
        "leak_counts": data.leaks.counts.tolist(),
    }
    template = environment.get_template("report.html.jinja")

    def page(kept: set[int], packing: _Packing) -> bytes:
        pictures, starts, faults = _strung(data, kept)
        left_out = sum(reason == _TOO_LARGE for reason in faults.values())
        text = template.render(
            fixed, packing=packing, pictures=pictures, starts=starts, faults=faults, left_out=left_out
        )
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()

    packing = _packed_small(data.points, min(_PACKED, LARGEST - len(page(set(), _Packing({}, "")))))
    whole = page(set(range(len(data.pictures))), packing)
    if len(whole) <= LARGEST:
        return whole
    return page(_fitting(data, LARGEST - len(page(set(), packing))), packing)


def _script() -> str:
    parts = [(_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return "'use strict';\n" + "\n".join(parts)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _packed_small(points: Points, room: int) -> _Packing:
    """Packs the points' columns into so many bytes: with shorter texts if need be, and without the last columns."""
    names = [*(name for name in points.colours if name not in points.metadata), *points.metadata]
    longest = max((sum(map(len, texts)) for texts in (points.keys, *points.metadata.values())), default=0)
    for letters in _TEXTS:
        packing = _packed(points, letters, names)
        if packing.size <= room:
            return packing._replace(notices=(_CUT,) if longest > letters else ())
    counts = range(len(names))
    kept = max(bisect.bisect_right(counts, room, key=lambda count: _packed(points, letters, names[:count]).size) - 1, 1)
    left_out = count_text(len(names) - kept, "column")
    told = f"{left_out} left out, as the page would be above 10 MB; --color names the wanted ones."
    return _packed(points, letters, names[:kept])._replace(notices=(_CUT, told) if longest > letters else (told,))


def _packed(points: Points, letters: int, wanted: list[str]) -> _Packing:
    """Packs the points' places, keys and neighbours and these columns, with so many letters in one of texts."""
    columns: dict[str, Any] = {}
    parts: list[bytes] = []

    def add(content: bytes, kind: str) -> dict[str, Any]:
        begin = sum(map(len, parts))
        parts.append(content + bytes(-len(content) % 4))
        return {"kind": kind, "begin": begin, "bytes": len(content)}

    def add_texts(texts: list[str]) -> dict[str, Any]:
        return add(json.dumps(_bounded(texts, letters), separators=(",", ":")).encode(), "texts")

    columns["x"] = add(points.x.astype("<u2").tobytes(), "Uint16")
    columns["y"] = add(points.y.astype("<u2").tobytes(), "Uint16")
    columns["splits"] = add(points.splits.astype("<u2").tobytes(), "Uint16")
    columns["picture"] = add(points.picture.astype("<i4").tobytes(), "Int32")
    # One plane per rank, and thousandths: so both become smaller when they are deflated.
    narrow = len(points.keys) < 0xFFFF
    neighbours = points.neighbours.T.astype("<u2" if narrow else "<i4")
    columns["neighbours"] = add(neighbours.tobytes(), "Uint16" if narrow else "Int32")
    thousandths = np.rint(np.nan_to_num(points.similarities.T) * 1000).astype("<i2")
    columns["similarities"] = add(thousandths.tobytes(), "Int16")
    columns["keys"] = add_texts(points.keys)
    colours = []
    for title, column in points.colours.items():
        if title not in wanted:
            continue
        if isinstance(column, Categories):
            place, names = add(column.codes.astype("<u2").tobytes(), "Uint16"), list(column.names)
            colours.append({"title": title, "column": place, "names": names})
        else:
            colours.append({"title": title, "column": add(column.values.astype("<f4").tobytes(), "Float32")})
    further = ((title, texts) for title, texts in points.metadata.items() if title in wanted)
    metadata = [{"title": title, "column": add_texts(texts)} for title, texts in further]
    about = {"count": len(points.keys), "is_sample": points.is_sample}
    directory = {**about, "columns": columns, "colours": colours, "metadata": metadata}
    return _Packing(directory, base64.b64encode(zlib.compress(b"".join(parts), 9)).decode())


def _bounded(texts: list[str], letters: int) -> list[str]:
    if sum(map(len, texts)) <= letters:
        return texts
    longest = max(letters // len(texts), 40)
    return [text if len(text) <= longest else text[:longest] + "…" for text in texts]


def _strung(data: ReportData, kept: set[int]) -> tuple[str, list[int], dict[int, str]]:
    """Strings the kept pictures together: their base64, where each begins and ends in it, and why others have none."""
    parts, faults = [], {}
    for number, picture in enumerate(data.pictures):
        shown = data.images_shown and number in kept and picture.data is not None
        parts.append(base64.b64encode(picture.data).decode() if shown and picture.data is not None else "")
        if not shown:
            faults[number] = (picture.fault or _TOO_LARGE) if data.images_shown else _UNWANTED
    return "".join(parts), [0, *itertools.accumulate(map(len, parts))], faults


def _fitting(data: ReportData, room: int) -> set[int]:
    """Chooses the pictures that fit: those in lists first, then those of the map, evenly over its points."""
    listed = [member.picture for member in _members(data) if member.picture >= 0]
    shown = set(listed)
    others = [number for number in range(len(data.pictures)) if number not in shown]
    spread = [number for step in range(16) for number in others[step::16]]
    kept: set[int] = set()
    room -= len(_TOO_LARGE) * 2  # what of one picture is a fault
    for number in dict.fromkeys([*listed, *spread]):
        size = -(-len(data.pictures[number].data or b"") // 3) * 4
        if size <= room:
            kept.add(number)
            room -= size
    return kept


def _members(data: ReportData) -> Iterator[Member]:
    findings: Iterable[Findings] = (
        data.outliers, data.contradicted, data.degenerate, data.dark, data.blurry, data.tiny, data.odd_shaped
    )  # fmt: skip
    for pair in data.leak_pairs:
        yield from (pair.a, pair.b)
    for found in findings:
        yield from (finding.member for finding in found.shown)
    for group in data.duplicates:
        yield from group.members


def _number(value: float) -> str:
    return f"{value:,}"


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}… ({len(text):,} letters)"


def _parts(key: str) -> list[str]:
    """Divides a key into its folder, which a list shows as much of as there is room, and its last part."""
    place = key.rfind("/", 0, -1) + 1
    return [part for part in (key[:place], key[place:]) if part] if len(key) <= _SHORT else [_short(key)]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1):.1f}"
