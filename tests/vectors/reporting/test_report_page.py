"""The page of a report, in a browser: what it shows, what hands do to it, and that strangers' texts do no harm."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from embedx.vectors.reporting import report_page
from embedx.vectors.reporting.report_data import Categories, Fact, Findings, Numbers, Picture, Reject, ReportData
from embedx.vectors.reporting.report_page import render
from scripts.bench_page import made_up

Open = Callable[..., Page]

STRANGE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "]]>&amp;&#60;\"'`",
    "photo\u202egpj.exe",
    "a\u2028b\u2029c\nd\te",
    "\ud800 alone",
    "😀 👩‍👩‍👧 日本語 العربية/صورة.jpg",
    "",
    " ",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(3)",
    "x" * 10_000,
    "w/" * 5_000,
    "style=position:fixed",
]
ROWS = 300


@pytest.fixture(scope="module")
def data() -> ReportData:
    return made_up(ROWS, 60, 5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium here to open the page in")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of some data. At the end: nothing was logged, asked, or requested from elsewhere."""
    said: list[str] = []
    requests: list[str] = []
    contexts = []
    file = tmp_path / "report.html"

    def open_page(data: ReportData, *, script: str = "", mapped: bool = True, **options: Any) -> Page:
        file.write_bytes(render(data))
        contexts.append(context := browser.new_context(**{"viewport": {"width": 1300, "height": 900}} | options))
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: requests.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(file.as_uri())
        if mapped:
            page.wait_for_selector("html.mapped", state="attached")
            page.evaluate("document.documentElement.style.scrollBehavior = 'auto'; $('#map').scrollIntoView()")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in requests if url != file.as_uri() and not url.startswith("blob:")] == []


def place(page: Page, point: int) -> tuple[float, float]:
    """The place of a point in the window."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    left, top = page.evaluate(f"[view.left(points.x[{point}]), view.top(points.y[{point}])]")
    return box["x"] + left, box["y"] + top


def lone(data: ReportData) -> int:
    """The point with a picture that is farthest from all others, so that a click on it means no other."""
    places = np.stack([data.points.x, data.points.y], 1).astype(float)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    return int(np.where(data.points.picture >= 0, apart.min(1), -1).argmax())


def pixel(page: Page, point: int) -> list[int]:
    """The colour in the middle of a point, red, green and blue."""
    page.mouse.move(5, 5)
    left, top = place(page, point)
    shot = page.screenshot(clip={"x": int(left), "y": int(top), "width": 1, "height": 1})
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[0, 0].tolist()


def until(page: Page, condition: str) -> None:
    """Waits for a condition in JavaScript; Playwright's own way to do so is refused by the page's policy."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"{condition}: {page.evaluate('[zoomed(), performance.now() - hand.scrolled, scrollY]')}")


def test_it_is_one_file_that_allows_and_names_nothing_from_elsewhere(data: ReportData) -> None:
    page = render(data)
    assert page == render(data)
    text = page.decode()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy
    assert re.findall(r"(?:https?:)?//[\w-]+\.", text) == []
    assert not re.search(r"""\s(?:style|on\w+)=["']""", text.split("<script>")[0])
    for script in report_page._SCRIPTS:
        source = (report_page._FOLDER / script).read_text()
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)
        assert len(source.splitlines()) <= 300


def test_the_lists_need_no_javascript(opened: Open, data: ReportData) -> None:
    page = opened(data, mapped=False, java_script_enabled=False)
    for text in ("a value of some words", "class 3", "Leaks: the same in two splits", "mean cosine distance 0.83"):
        assert page.get_by_text(text).first.is_visible()
    assert page.get_by_text("need JavaScript").is_visible()
    assert not page.locator("#search").is_visible()


def test_a_click_on_a_point_shows_its_picture_its_facts_and_its_neighbours(opened: Open, data: ReportData) -> None:
    page, point = opened(data), lone(data)
    page.mouse.click(*place(page, point))
    chosen = page.locator("#chosen")
    assert chosen.locator("h3").text_content() == data.points.keys[point]
    until(page, "document.querySelector('#chosen .subject img')?.naturalWidth === 96")
    facts = dict(zip(chosen.locator("dt").all_text_contents(), chosen.locator("dd").all_text_contents(), strict=True))
    scores, classes = data.points.colours["outlier score"], data.points.colours["class"]
    assert isinstance(scores, Numbers) and isinstance(classes, Categories)
    assert facts["path"] == data.points.metadata["path"][point]
    assert chosen.locator("h4").text_content() == "Nearest among the points on the map, by cosine similarity"
    assert facts["class"] == classes.names[classes.codes[point]]
    assert float(facts["outlier score"]) == pytest.approx(scores.values[point], rel=1e-3)
    near = data.points.neighbours[point]
    assert chosen.locator(".cards .key").all_text_contents() == [data.points.keys[each] for each in near]
    shown = [float(text) for text in chosen.locator(".cards b").all_text_contents()]
    np.testing.assert_allclose(shown, data.points.similarities[point], atol=6e-4)
    chosen.locator(".cards .key").nth(2).click()
    assert chosen.locator("h3").text_content() == data.points.keys[near[2]]
    page.keyboard.press("Escape")
    assert chosen.locator("h3").count() == 0


def test_the_neighbours_among_all_rows_are_called_so_and_values_are_whole(opened: Open, data: ReportData) -> None:
    exact = [str(123_456_789 + row) for row in range(ROWS)]
    numbers = Numbers(np.array(exact, np.float32))
    colours = {**data.points.colours, "id": numbers}
    points = dataclasses.replace(data.points, is_sample=False, colours=colours, metadata={"id": exact})
    page = opened(dataclasses.replace(data, points=points))
    page.evaluate("showPoint(3)")
    assert page.locator("#chosen h4").text_content() == "Nearest neighbours, by cosine similarity"
    assert page.locator("#chosen dd").all_text_contents()[-1] == "123456792"


def test_the_pointer_over_a_point_shows_what_it_is(opened: Open, data: ReportData) -> None:
    page, point = opened(data), lone(data)
    page.mouse.move(*place(page, point))
    assert data.points.keys[point] in (page.locator("#tip").text_content() or "")
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


def test_wheel_and_drag_keep_what_is_under_the_pointer(opened: Open, data: ReportData) -> None:
    page, point = opened(data), lone(data)
    before = place(page, point)
    page.mouse.move(*before)
    page.wait_for_timeout(350)  # the wheel is the page's while that scrolls
    page.mouse.wheel(0, -300)
    until(page, "zoomed() > 1.5")
    assert place(page, point) == pytest.approx(before, abs=1)
    after = (
        before[0] - 90 if before[0] > 650 else before[0] + 90,
        before[1] - 60 if before[1] > 450 else before[1] + 60,
    )
    page.mouse.down()
    page.mouse.move(*after, steps=4)
    page.mouse.up()
    assert place(page, point) == pytest.approx(after, abs=5)
    assert page.locator("#chosen h3").count() == 0  # a drag chooses nothing
    page.mouse.wheel(0, 3000)
    page.mouse.wheel(0, 3000)
    until(page, "zoomed() === 1")


@pytest.mark.parametrize("button", [True, False], ids=["button", "shift"])
def test_a_lasso_lists_what_is_inside_with_counts(opened: Open, data: ReportData, button: bool) -> None:
    page = opened(data, permissions=["clipboard-read", "clipboard-write"])
    west, east, north, south = 15000, 45000, 20000, 50000
    corners = [(west, north), (east, north), (east, south), (west, south)]
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    shown = [page.evaluate(f"[view.left({x}), view.top({y})]") for x, y in corners]
    if button:
        page.click("#lasso")
    else:
        page.keyboard.down("Shift")
    page.mouse.move(box["x"] + shown[0][0], box["y"] + shown[0][1])
    page.mouse.down()
    for left, top in shown[1:]:
        page.mouse.move(box["x"] + left, box["y"] + top, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    x, y = data.points.x.astype(int), data.points.y.astype(int)
    edge = 2 / page.evaluate("view.scale")  # the pointer stands on whole pixels
    inside = (x > west) & (x < east) & (y > north) & (y < south)
    near = (np.abs(x[:, None] - [west, east]) < edge).any(1) | (np.abs(y[:, None] - [north, south]) < edge).any(1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    lines = Path(download.value.path()).read_text().splitlines()
    listed = {json.loads(line)["key"] for line in lines}
    keys = np.array(data.points.keys)
    assert listed - set(keys[near]) == set(keys[inside & ~near]) and len(listed) > 20
    title = page.locator("#chosen h3").text_content()
    assert title == f"Inside the lasso: {len(listed)} points"
    counts = [int(text) for text in page.locator("#chosen .counts td:nth-child(2)").all_text_contents()]
    assert sum(counts) == len(listed) and counts == sorted(counts, reverse=True)
    page.get_by_role("button", name="Copy keys").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert set(page.evaluate("navigator.clipboard.readText()").splitlines()) == listed
    page.locator("#chosen .keys .key").first.click()
    page.get_by_role("button", name="← the list").click()
    assert page.locator("#chosen h3").text_content() == title


def test_a_search_by_key_finds_points(opened: Open, data: ReportData) -> None:
    page = opened(data)
    page.fill("#search", "IMAGE_000001")
    page.wait_for_selector("text=Keys that match: 10 points")
    assert page.locator("#chosen .key").all_text_contents() == [
        key for key in data.points.keys if "image_000001" in key
    ]
    assert page.evaluate("paint.strong.reduce((sum, each) => sum + each)") == 10
    page.fill("#search", data.points.keys[123])
    page.press("#search", "Enter")
    assert page.locator("#chosen h3").text_content() == data.points.keys[123]
    page.fill("#search", "nothing like it")
    page.wait_for_selector("text=Keys that match: 0 points")
    page.press("#search", "Escape")
    assert page.evaluate("paint.strong") is None and page.input_value("#search") == ""


def test_points_are_coloured_by_the_chosen_column(opened: Open, data: ReportData) -> None:
    page, point = opened(data), lone(data)
    classes = data.points.colours["class"]
    assert isinstance(classes, Categories)
    by_class = pixel(page, point)
    name = classes.names[classes.codes[point]]
    page.get_by_role("checkbox", name=f"show {name}", exact=True).uncheck()
    hidden = pixel(page, point)
    assert hidden == [0xFB, 0xFC, 0xFD]
    page.mouse.click(*place(page, point))
    assert page.locator("#chosen h3").count() == 0  # what is hidden can't be chosen
    page.select_option("#by", label="split")
    assert page.locator("#legend bdi").all_text_contents() == ["train", "val"]
    counts = [int(text) for text in page.locator("#legend .n").all_text_contents()]
    assert counts == np.bincount(data.points.splits).tolist()
    assert pixel(page, point) not in (hidden, by_class)
    page.locator("#legend button", has_text="val").click()
    assert page.evaluate("[...paint.strong]") == data.points.splits.tolist()
    page.select_option("#by", label="outlier score")
    assert page.locator("#legend .ends span").count() == 3
    assert pixel(page, point) not in (hidden, by_class)


def test_of_many_classes_the_largest_have_colours_and_all_are_listed(opened: Open) -> None:
    data = made_up(3000, 10, 500)
    page = opened(data)
    colours = page.evaluate("chosen().names.map((_, code) => categoryColour(code))")
    assert len(set(colours[:20])) == 20 and set(colours[20:]) == {page.evaluate("colourOf('--other')")}
    assert page.locator("#legend input").count() == 20
    page.get_by_role("button", name="480 more").click()
    assert page.locator("#legend input").count() == 300 and page.get_by_text("and 200 more").is_visible()
    page.fill("#filter", "class 42")
    assert page.locator("#legend button").count() == 11  # 42, 420 … 429
    page.locator("#legend button").first.click()
    assert page.evaluate("paint.strong.reduce((sum, each) => sum + each)") == page.evaluate("legend.counts[42]")


def test_the_keyboard_does_all(opened: Open, data: ReportData) -> None:
    page = opened(data)
    page.focus("#search")
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order[:7] == ["by", "lasso", "seen", "out", "in", "fit", "canvas"]
    page.focus("#canvas")
    page.keyboard.press("+")
    assert page.evaluate("zoomed()") == pytest.approx(1.4)
    before = page.evaluate("view.x")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("view.x") > before
    page.keyboard.press("Enter")
    key = page.locator("#chosen h3").text_content()
    assert key in data.points.keys
    assert key in (page.locator("#said").text_content() or "")
    page.keyboard.press("n")
    point = data.points.keys.index(key or "")
    assert page.locator("#chosen h3").text_content() == data.points.keys[data.points.neighbours[point, 0]]
    page.keyboard.press("0")
    page.keyboard.press("Escape")
    assert page.evaluate("[zoomed(), paint.selected]") == [1, -1]


def test_a_key_in_a_list_leads_to_the_map_and_back(opened: Open, data: ReportData) -> None:
    page = opened(data)
    button = page.locator("#outliers .key").nth(3)
    button.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    button.click()
    assert page.locator("#chosen h3").text_content() == data.outliers.shown[3].member.key
    page.get_by_role("button", name="← back").click()
    until(page, f"Math.abs(scrollY - {before}) < 2")


def test_strange_texts_do_no_harm(opened: Open, data: ReportData) -> None:
    page = opened(strange(data))
    assert page.evaluate("document.scripts.length") == 6
    assert page.evaluate("document.querySelectorAll('img[src=x], main script, main style').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for number, key in enumerate(STRANGE):
        page.evaluate(f"showPoint({number})")
        shown = page.evaluate("[...$('#chosen h3').textContent].map((each) => each.codePointAt(0))")
        assert shown == [ord(letter) for letter in key], key[:30]
        page.evaluate(f"hover({number}, 100, 100)")
    assert page.evaluate("points.keys.length") == ROWS
    page.fill("#search", "<img")
    page.wait_for_selector("text=Keys that match: 1 point")
    page.evaluate("showPoints([...points.keys.keys()], 'All')")
    for number in range(3):
        page.evaluate(f"colourBy({number})")
    text = page.locator("#outliers").text_content() or ""
    assert "<img src=x onerror=alert(1)>" in text and "{{ 7 * 7 }}" in text and "x" * 400 + "…" in text
    page.evaluate("$$('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def strange(data: ReportData) -> ReportData:
    """With strange texts wherever a store's texts stand."""
    keys = [*STRANGE, *data.points.keys[len(STRANGE) :]]
    names = tuple(STRANGE)
    codes = (np.arange(ROWS) % len(STRANGE)).astype(np.uint16)
    points = dataclasses.replace(
        data.points,
        keys=keys,
        metadata={STRANGE[0]: keys, "path": keys},
        colours={STRANGE[1]: Categories(codes, names), STRANGE[2]: Categories(codes, names), **data.points.colours},
        splits=(codes % 2).astype(np.uint16),
    )
    first = data.outliers.shown[0]
    member = first.member
    found = Findings(len(STRANGE), ROWS, tuple(
        dataclasses.replace(first, text=text, member=dataclasses.replace(member, key=text, label=text, split=text))
        for text in STRANGE
    ), STRANGE[0])  # fmt: skip
    members = tuple(finding.member for finding in found.shown)
    return dataclasses.replace(
        data,
        title=STRANGE[0] + STRANGE[6],
        facts=tuple(Fact(text, text) for text in STRANGE),
        notices=tuple(STRANGE),
        label_name=STRANGE[1],
        map_name=STRANGE[2],
        splits=tuple(dataclasses.replace(data.splits[0], name=text) for text in STRANGE[:2]),
        classes=tuple(dataclasses.replace(data.classes[0], name=text) for text in STRANGE),
        rejects=tuple(Reject(text, "rejected", 20, tuple(STRANGE[:10])) for text in STRANGE),
        points=points,
        pictures=tuple(Picture(None, STRANGE[number % 9], 0, 0) for number in range(len(data.pictures))),
        duplicates=(dataclasses.replace(data.duplicates[0], members=members, size=99),),
        leaks=dataclasses.replace(data.leaks, splits=(STRANGE[0], STRANGE[12])),
        leak_pairs=(dataclasses.replace(data.leak_pairs[0], a=members[0], b=members[12]),),
        outliers=found,
        contradicted=found,
    )


def test_a_telephone_shows_it_without_sideways_scrolling(opened: Open, data: ReportData) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 3}
    page, point = opened(data, **phone), lone(data)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    page.touchscreen.tap(*place(page, point))
    assert page.locator("#chosen h3").text_content() == data.points.keys[point]
    page.locator("#chosen .subject img").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.evaluate("clearPanel(); scrollTo(0, 0); $('#canvas').scrollIntoView()")
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    session = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60), ("touchEnd", 0)):
        fingers = [{"x": middle[0] + apart * side, "y": middle[1], "id": side} for side in (-1, 1)] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    assert page.evaluate("zoomed()") == pytest.approx(3, rel=0.1)


def test_pictures_are_cut_when_they_are_seen(opened: Open, data: ReportData) -> None:
    page = opened(data)
    boxes = page.locator(".picture[data-picture]").count()
    assert page.locator("img").count() < boxes / 2
    page.locator("#images .picture[data-picture]").first.scroll_into_view_if_needed()
    until(page, "document.querySelector('#images .picture img')?.naturalWidth === 96")


def test_a_picture_that_is_not_there_says_why(opened: Open, data: ReportData) -> None:
    gone = tuple(Picture(None, "the file has changed", 0, 0) for _ in data.pictures)
    broken = (Picture(b"no picture", None, 0, 0), *gone[1:])
    page, first = opened(dataclasses.replace(data, pictures=broken)), int(np.flatnonzero(data.points.picture == 0)[0])
    page.evaluate(f"showPoint({first})")
    page.wait_for_selector("#chosen .subject .blank:has-text('can\u2019t be shown')")
    page.evaluate(f"showPoint({np.flatnonzero(data.points.picture == 1)[0]})")
    page.wait_for_selector("#chosen .subject .blank:has-text('the file has changed')")
    page.evaluate(f"showPoint({np.flatnonzero(data.points.picture == -1)[0]})")
    page.wait_for_selector("#chosen .subject .blank:has-text('no picture kept')")


def test_without_pictures_none_is_in_the_file(opened: Open, data: ReportData) -> None:
    bare = dataclasses.replace(data, images_shown=False)
    assert len(render(bare)) < len(render(data)) - 50_000
    page = opened(bare)
    page.evaluate("showPoint(0)")
    assert page.locator("#chosen .blank").first.text_content() == "no pictures in this report"
    assert page.locator("img").count() == 0


def test_pictures_that_would_make_it_too_large_are_left_out(
    opened: Open, data: ReportData, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(data, outliers=dataclasses.replace(data.outliers, shown=data.outliers.shown[:2]))
    limit = len(render(few)) - 60_000
    monkeypatch.setattr(report_page, "LARGEST", limit)
    assert limit - 16_000 < len(render(few)) <= limit
    page = opened(few)
    left_out = re.findall(r"(\d+) pictures are left out", page.locator(".notices").text_content() or "")
    assert 0 < int(left_out[0]) < 60
    page.evaluate("scrollTo(0, 0); $('#duplicates').scrollIntoView()")
    until(page, "document.querySelector('#duplicates .picture img')")


@pytest.mark.parametrize(("letters", "columns", "left_out"), [(60, 1, 0), (200, 1, 0), (2000, 4, 3), (60, 4, 1)])
def test_texts_and_columns_that_would_make_it_too_large_are_cut_and_left_out(
    opened: Open, data: ReportData, monkeypatch: pytest.MonkeyPatch, letters: int, columns: int, left_out: int
) -> None:
    monkeypatch.setattr(report_page, "_TEXTS", (100 * ROWS,))
    monkeypatch.setattr(report_page, "_PACKED", 210_000)
    text = np.random.default_rng(0).integers(0x4E00, 0x9FFF, (ROWS, letters)).astype(np.uint32)
    texts = [bytes(row).decode("utf-32-le") for row in text]
    metadata = {str(number): texts[number:] + texts[:number] for number in range(columns)}
    page = opened(dataclasses.replace(data, points=dataclasses.replace(data.points, metadata=metadata)))
    told = [report_page._CUT] if letters > 100 else []
    if left_out:
        words = f"{left_out} column{'s' * (left_out > 1)} left out"
        told.append(f"{words}, as the page would be above 10 MB; --color names the wanted ones.")
    assert page.locator(".notices li").all_text_contents() == told
    page.evaluate("showPoint(7)")
    shown = page.locator("#chosen dt").all_text_contents()
    assert shown == ["split", "class", "outlier score", *list(metadata)[: columns - left_out]]


def test_many_columns_of_numbers_are_left_out_until_it_fits() -> None:
    data = made_up(50_000, 60, 5)
    generator = np.random.default_rng(0)
    columns = {f"number {each}": Numbers(generator.random(50_000).astype(np.float32)) for each in range(45)}
    metadata = {**data.points.metadata, **{name: [""] * 50_000 for name in columns}}
    points = dataclasses.replace(data.points, colours={**data.points.colours, **columns}, metadata=metadata)
    page = render(dataclasses.replace(data, points=points))
    assert 6_000_000 < len(page) <= report_page.LARGEST
    (left_out,) = re.findall(r"<li>(\d+) columns left out, as the page would be above 10 MB", page.decode())
    assert "number 0" in page.decode() and f"number {45 - int(left_out)}" not in page.decode()


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_are_a_page_too(opened: Open, data: ReportData, rows: int) -> None:
    points = data.points
    some = dataclasses.replace(
        points, total_rows=rows, x=points.x[:rows], y=points.y[:rows], keys=points.keys[:rows],
        splits=points.splits[:rows], picture=points.picture[:rows], similarities=points.similarities[:rows],
        neighbours=np.full((rows, 8), -1, np.int32), metadata={},
        colours={"outlier score": Numbers(np.full(rows, np.nan, np.float32))},
    )  # fmt: skip
    page = opened(dataclasses.replace(data, points=some, classes=(), label_name=""), mapped=rows > 0)
    if not rows:
        assert page.get_by_text("There are no rows to show").is_visible()
        return
    page.focus("#canvas")
    page.keyboard.press("Enter")
    assert page.locator("#chosen h3").text_content() in points.keys[:rows]
    assert page.get_by_text("No neighbours").is_visible()


def test_it_follows_the_reader_s_light_or_dark_setting_and_its_own_switch(opened: Open, data: ReportData) -> None:
    page = opened(data, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(20, 23, 26)"
    painted = page.evaluate("paint.ground")
    page.get_by_role("button", name="Light colours").click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert page.evaluate("paint.ground") != painted
    page.reload()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_an_old_browser_shows_all_but_the_map(opened: Open, data: ReportData) -> None:
    page = opened(data, script="delete window.DecompressionStream", mapped=False)
    page.get_by_text("This browser is too old for the map").wait_for()
    page.locator("#outliers .picture").first.scroll_into_view_if_needed()
    until(page, "$('#outliers .picture img')?.naturalWidth === 96")
