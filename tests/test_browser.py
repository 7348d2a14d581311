"""The report in a real browser: what it shows there is what Python computes, within the error it states.

The browser is the system's Chromium, driven by Playwright. The checks of accessibility want axe-core:
`AXE_CORE` names its file `axe.min.js`.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from priorshift import Predictions, Prior, report
from priorshift.report import what_if
from test_report import HOSTILE, make_run

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path"),
]

COUNTS_30 = (400 * 100 ** (-np.arange(30) / 29)).round().astype(int)
MIXES = ("forward:50", "uniform", "backward:50")
PHONE, DESK = {"width": 375, "height": 812}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Chromium refuses to sandbox itself for root, which CI runs as.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def grouped_runs():
    return [
        make_run(method, seed, counts=COUNTS_30, num_samples=900, sharpness=0.8)
        for method in ("Softmax", "LADE")
        for seed in (6, 7)
    ]


@pytest.fixture(scope="module")
def grouped_page(grouped_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "grouped.html"
    return report.write_report(grouped_runs, path, title="Thirty classes", mixes=MIXES)


@pytest.fixture(scope="module")
def hostile_run():
    return make_run("</script><b>x", 6, class_names=HOSTILE, num_samples=200)


@pytest.fixture(scope="module")
def hostile_page(hostile_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "hostile.html"
    return report.write_report([hostile_run], path, title="</title><b>x", mixes=["uniform"])


@pytest.fixture
def open_page(browser):
    """Open a file in a window of its own; at the end nothing may have been fetched or complained of."""
    contexts, said, fetched = [], [], []

    def open_(path, **options):
        contexts.append(browser.new_context(**{"viewport": DESK} | options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith("file:") for url in fetched) and len(fetched) == len(contexts)


def settle(page):
    """Wait until the page shows what was last set."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def rows_of(page, table):
    return page.eval_on_selector_all(
        f"#what-if-{table} tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def shown_mix(page):
    page.click("#what-if-show")
    return json.loads(page.input_value("#what-if-text"))


def stated_error(page):
    text = " ".join(page.inner_text("main").split())
    numbers = re.search(
        r"top-1 was within ([\d.]+) points, .* within ([\d.]+) points .* within ([\d.]+) of", text
    )
    return dict(zip(("accuracy", "groups", "ece"), map(float, numbers.groups()), strict=True))


def choose(page, name):
    page.select_option("#what-if-preset", label=name)
    settle(page)


def assert_shows(page, runs, target):
    """The table is that of the copy to the last digit, that of the predictions within the stated error."""
    error = stated_error(page)
    scores = ["accuracy", *(group.name.lower() for group in what_if.groups(runs[0].train_counts)), "ece"]
    decoded = what_if.compact(runs, 10**7).decoded(runs)
    header, *rows = rows_of(page, "scores")
    assert [re.sub(r" [↑↓]", "", name).lower() for name in header] == ["method", "top-1", *scores[1:]]
    outcomes = zip(what_if.what_if(runs, target), what_if.what_if(decoded, target), rows, strict=True)
    for exact, copied, (name, *cells) in outcomes:
        assert name == (f"{exact.method}, compensated" if exact.compensated else exact.method)
        for score, cell in zip(scores, cells, strict=True):
            if exact.scores[score] is None:
                assert cell == "n/a"
                continue
            shown, *deviation = map(float, re.findall(r"[\d.]+", cell))
            scale, rounding = (1, 0.0005) if score == "ece" else (100, 0.05)
            assert shown == pytest.approx(scale * copied.scores[score].mean, abs=1.01 * rounding)
            allowed = error[{"accuracy": "accuracy", "ece": "ece"}.get(score, "groups")]
            assert shown == pytest.approx(scale * exact.scores[score].mean, abs=allowed + 1.01 * rounding)
            if len(runs) > 1:
                assert deviation == [pytest.approx(scale * copied.scores[score].sd, abs=1.01 * rounding)]


@pytest.mark.parametrize("mix", [*MIXES, "training mix", "test images", "test images, estimated by LADE"])
def test_a_mix_that_is_chosen_is_judged_as_python_does(open_page, grouped_page, grouped_runs, mix):
    page = open_page(grouped_page)
    choose(page, mix)
    assert_shows(page, grouped_runs, shown_mix(page))
    if mix in MIXES:
        target = report.page.shift.target_prior(mix, COUNTS_30)
        assert shown_mix(page) == pytest.approx(target.probs.tolist(), abs=1e-15)
    assert f"Mix: {mix}." in page.inner_text("#what-if-scores caption")


def test_a_slider_that_is_dragged_sets_the_share_of_its_group(open_page, grouped_page, grouped_runs):
    page = open_page(grouped_page)
    choose(page, "backward:50")
    before = shown_mix(page)
    slider = page.locator("#what-if-part-0")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    thumb = box["x"] + 8 + (box["width"] - 16) * float(slider.input_value()) / 100
    page.mouse.move(thumb, middle)
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(thumb + step * (box["x"] + 0.6 * box["width"] - thumb) / 5, middle)
        settle(page)
    page.mouse.up()
    settle(page)
    share = float(slider.input_value()) / 100
    assert 0.5 < share < 0.7
    after = shown_mix(page)
    many = (COUNTS_30 > 100).tolist()
    held = sum(mass for mass, inside in zip(before, many, strict=True) if inside)
    expected = [
        mass * (share / held if inside else (1 - share) / (1 - held))
        for mass, inside in zip(before, many, strict=True)
    ]
    assert after == pytest.approx(expected, rel=1e-9)
    assert_shows(page, grouped_runs, after)
    assert (
        page.evaluate("document.getElementById('what-if-preset').selectedOptions[0].textContent")
        == "your own"
    )
    outputs = page.locator(".slider output").all_inner_texts()
    assert outputs[0] == f"{100 * share:.1f} %"
    assert sum(float(text.removesuffix(" %")) for text in outputs) == pytest.approx(100, abs=0.11)


def test_the_panel_goes_by_keyboard(open_page, grouped_page, grouped_runs):
    page = open_page(grouped_page)
    page.focus("#what-if-preset")
    page.keyboard.press("t")
    page.keyboard.press("Tab")
    settle(page)
    assert page.evaluate("document.activeElement.id") == "what-if-part-0"
    assert shown_mix(page) == pytest.approx((COUNTS_30 / COUNTS_30.sum()).tolist(), abs=1e-6)
    page.focus("#what-if-part-0")
    page.keyboard.press("Home")
    settle(page)
    absent = shown_mix(page)
    assert sum(mass > 0 for mass in absent) == int((COUNTS_30 <= 100).sum())
    assert_shows(page, grouped_runs, absent)
    assert "n/a" in [row[2] for row in rows_of(page, "scores")]
    page.focus("#what-if-part-0")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.get_attribute("#what-if-part-0", "aria-valuetext") == "0.5 %"
    many = [mass for mass, count in zip(shown_mix(page), COUNTS_30.tolist(), strict=True) if count > 100]
    assert many == pytest.approx([0.005 / len(many)] * len(many))


def test_the_classes_that_change_most_are_those_of_python(open_page, grouped_page, grouped_runs):
    page = open_page(grouped_page)
    choose(page, "uniform")
    decoded = what_if.compact(grouped_runs, 10**7).decoded(grouped_runs)
    outcomes = what_if.what_if(decoded, Prior.uniform(30))
    pairs = [outcomes[place : place + 2] for place in (0, 2)]
    changes = {
        label: max(abs(after.class_accuracy[label] - before.class_accuracy[label]) for before, after in pairs)
        for label in range(30)
    }
    header, *rows = rows_of(page, "classes")
    assert header == ["Class", "Training images", "Share, %", "Softmax", "LADE"]
    order = sorted(changes, key=lambda label: (-round(changes[label], 9), label))[:8]
    assert sorted(row[0] for row in rows) == sorted(map(str, order))
    for name, images, share, *cells in rows:
        label = int(name)
        assert images == f"{COUNTS_30[label]:,}" and share == "3.33"
        for cell, (before, after) in zip(cells, pairs, strict=True):
            numbers = [float(number) for number in cell.split(" → ")]
            exact = [100 * before.class_accuracy[label], 100 * after.class_accuracy[label]]
            assert numbers == pytest.approx(exact, abs=0.0501)


@pytest.mark.parametrize("spelling", ["list", "object", "column"])
def test_a_mix_that_is_pasted_is_judged_as_python_does(open_page, hostile_page, hostile_run, spelling):
    target = [9, 1, 0, 2, 2, 1, 1, 1, 1, 2]
    text = {
        "list": json.dumps(target),
        "object": json.dumps(dict(reversed(list(zip(HOSTILE, target, strict=True))))),
        "column": "\n".join(map(str, target)),
    }[spelling]
    page = open_page(hostile_page)
    page.fill("#what-if-text", text)
    page.click("#what-if-use")
    settle(page)
    assert_shows(page, [hostile_run], np.array(target) / 20)
    assert shown_mix(page) == pytest.approx([mass / 20 for mass in target])


def test_a_mix_that_is_none_is_refused_in_words(open_page, hostile_page):
    page = open_page(hostile_page)
    before = shown_mix(page)
    for text, words in (
        ("", "Expected 10 numbers, one for each class, but got 0."),
        ("1 2 3", "Expected 10 numbers, one for each class, but got 3."),
        ("1 1 1 1 1 1 1 1 1 -1", "Expected numbers that are not negative, but class 9 has another."),
        ("1 1 one 1 1 1 1 1 1 1", "Expected numbers that are not negative, but class 2 has another."),
        ("0 0 0 0 0 0 0 0 0 0", "Expected a positive sum, but got 0."),
        ("[1, 2", "This is no JSON: "),
        ('{"<img src=x onerror=y>": 1}', "Expected the names of classes, but got “<img src=x onerror=y>”."),
        ('{"x": 1}', "Expected a number for every class, but “</script><b>x” has none."),
    ):
        page.fill("#what-if-text", text)
        page.click("#what-if-use")
        assert page.inner_text("#what-if-wrong[role=alert]").startswith(words)
        assert shown_mix(page) == before
    page.click("#what-if-use")
    assert page.inner_text("#what-if-wrong") == ""


def test_hostile_names_are_text_in_the_browser(open_page, hostile_page):
    page = open_page(hostile_page)
    choose(page, "training mix")
    assert page.locator("b, img, i").count() == 0
    names = [name.replace("\n", " ") for name in HOSTILE]
    labels = [" ".join(text.split()) for text in page.locator(".slider label").all_text_contents()]
    assert sorted(labels) == sorted(names)
    assert [row[0] for row in rows_of(page, "scores")[1:]] == ["</script><b>x", "</script><b>x, compensated"]
    assert {row[0].replace("\n", " ") for row in rows_of(page, "classes")[1:]} <= set(names)
    assert page.title() == "</title><b>x"


def test_the_page_runs_no_other_script_and_reaches_nothing(browser, hostile_page):
    context = browser.new_context()
    page = context.new_page()
    fetched, refused = [], []
    page.on("requestfinished", lambda request: fetched.append(request.url))
    page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    page.goto(hostile_page.as_uri())
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.injected = true";
          const image = document.createElement("img");
          image.src = "https://example.org/pixel.png";
          document.body.append(script, image);
        }"""
    )
    assert page.evaluate("() => fetch('https://example.org/').then(() => false, () => true)")
    assert page.evaluate("window.injected") is None
    assert fetched == [hostile_page.as_uri()]
    assert refused == [("https://example.org/pixel.png", "csp")]
    context.close()


def test_the_mix_the_reader_stays_at_is_said_once(open_page, grouped_page):
    page = open_page(grouped_page)
    said = page.locator("#what-if-said[role=status]")
    assert "At this mix " in said.inner_text()
    page.evaluate(
        """() => {
          window.said = [];
          const place = document.getElementById("what-if-said");
          new MutationObserver(() => window.said.push(place.textContent)).observe(place, { childList: true });
        }"""
    )
    page.clock.install()
    page.clock.pause_at("2050-01-01")
    page.focus("#what-if-part-2")
    for _ in range(5):
        page.keyboard.press("PageUp")
        page.clock.run_for(100)
    assert page.evaluate("window.said") == []
    page.clock.run_for(1000)
    (sentence,) = page.evaluate("window.said")
    rows = rows_of(page, "scores")[1:]
    best = max(rows, key=lambda row: float(row[1].split("\xa0")[0]))
    assert f"{best[0]} has the highest top-1, {best[1].split()[0]} %" in sentence.replace("\xa0", " ")
    assert "points for Softmax" in sentence and "points for LADE" in sentence


def test_without_scripts_the_page_stands_and_says_what_is_missing(open_page, grouped_page):
    page = open_page(grouped_page, java_script_enabled=False)
    assert page.locator("#what-if").is_hidden()
    assert page.get_by_text("This panel needs JavaScript").is_visible()
    assert page.locator("svg").count() >= 8 and page.locator("table:visible").count() >= 6


def test_with_scripts_nothing_speaks_of_their_lack(open_page, grouped_page):
    page = open_page(grouped_page)
    assert page.locator("#what-if").is_visible()
    assert not page.get_by_text("This panel needs JavaScript").is_visible()


def test_print_shows_the_numbers_and_their_mix_but_no_controls(open_page, grouped_page):
    page = open_page(grouped_page)
    choose(page, "backward:50")
    assert page.locator("#what-if-shares").is_hidden()
    numbers = rows_of(page, "scores")
    page.emulate_media(media="print")
    assert (
        page.locator("#what-if input, #what-if select, #what-if textarea").locator("visible=true").count()
        == 0
    )
    shares = page.inner_text("#what-if-shares")
    assert re.fullmatch(r"This mix, backward:50: Many [\d.]+ %, Medium [\d.]+ %, Few [\d.]+ %\.", shares)
    assert page.locator("#what-if-scores").is_visible() and rows_of(page, "scores") == numbers


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_is_as_wide_as_the_window(open_page, hostile_page, viewport):
    page = open_page(hostile_page, viewport=viewport)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window == viewport["width"]


@pytest.mark.skipif("AXE_CORE" not in os.environ, reason="AXE_CORE does not name axe-core's axe.min.js")
@pytest.mark.parametrize(("viewport", "scheme"), [(PHONE, "dark"), (DESK, "light")], ids=["phone", "desk"])
def test_axe_finds_no_barrier(open_page, hostile_page, viewport, scheme):
    page = open_page(hostile_page, viewport=viewport, color_scheme=scheme)
    page.evaluate(Path(os.environ["AXE_CORE"]).read_text(encoding="utf-8"))
    for details in page.locator("details").all():
        details.evaluate("element => (element.open = true)")
    found = page.evaluate("() => axe.run(document)")
    assert [
        (rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found["violations"]
    ] == []
    assert len(found["passes"]) > 20


def test_a_subset_is_judged_as_it_is(open_page, grouped_page, grouped_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report.page, "MOST_BYTES", grouped_page.stat().st_size - 60_000)
    page = open_page(report.write_report(grouped_runs, tmp_path / "p.html", title="t", mixes=MIXES))
    choose(page, "uniform")
    assert "of the 900 test images" in page.inner_text("main")
    error = stated_error(page)
    for exact, row in zip(
        what_if.what_if(grouped_runs, Prior.uniform(30)), rows_of(page, "scores")[1:], strict=True
    ):
        top = float(row[1].split("\xa0")[0])
        assert top == pytest.approx(100 * exact.scores["accuracy"].mean, abs=error["accuracy"] + 0.0501)
        assert float(row[-1].split("\xa0")[0]) == pytest.approx(
            exact.scores["ece"].mean, abs=error["ece"] + 0.0006
        )


def test_a_class_no_sample_can_be_of_is_judged_as_python_does(open_page, tmp_path):
    logits = np.random.default_rng(0).standard_normal((60, 3))
    logits[::4, 1] = -np.inf
    run = Predictions(
        logits=logits,
        carried=Prior([0.6, 0.3, 0.1]),
        labels=np.arange(60) % 3,
        train_counts=[60, 30, 10],
        method="m",
    )
    page = open_page(report.write_report([run], tmp_path / "p.html", title="t", mixes=["uniform"]))
    assert_shows(page, [run], Prior.uniform(3))
