"""How large a report of 100 classes and 10,000 images is, how long it takes to make, and how quick its panel.

    python -m benchmarks.report_page

Three methods, one run each, of a simulated scorer. The page is opened in the system's Chromium, driven by
Playwright, which the browser tests use too. A slider is moved by script. The time is from its input event
until the frame with the new numbers is painted, and, as other work on the machine lengthens that, the
processor time of the page's main thread. Writes benchmarks/results/report_page.md.
"""

import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from priorshift import Predictions, Prior
from priorshift._blocks import num_threads
from priorshift.evaluation import compare
from priorshift.report import Table, markdown, write_report

RESULTS = Path(__file__).parent / "results" / "report_page.md"
CLASSES, IMAGES, DRAGS = 100, 10_000, 40
METHODS = ("Softmax", "Balanced Softmax", "LADE")
DRAG = """async (shares) => {
  const slider = document.getElementById("what-if-part-0"), times = [];
  for (const share of shares) {
    await new Promise((done) => setTimeout(done, 50));
    const start = performance.now();
    slider.value = share;
    slider.dispatchEvent(new Event("input"));
    // The callback runs in the frame that the event asked for; a message that it sends comes after the paint.
    await new Promise((done) =>
      requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = done;
        channel.port2.postMessage(0);
      })
    );
    times.push(performance.now() - start);
  }
  return times;
}"""


def simulated_runs() -> list[Predictions]:
    """Logits of a scorer that is right on about three images of four at the uniform mix."""
    counts = (500 * 100 ** (-np.arange(CLASSES) / (CLASSES - 1))).round().astype(int)
    source, labels = Prior.from_counts(counts), np.arange(IMAGES) % CLASSES
    runs = []
    for seed, method in enumerate(METHODS):
        noise = np.random.default_rng(seed).standard_normal((IMAGES, CLASSES))
        likelihoods = 1.5 * (noise + 3.2 * np.eye(CLASSES)[labels])
        carried = source if method == "Softmax" else Prior.uniform(CLASSES)
        runs.append(
            Predictions(
                logits=(likelihoods + carried.log_probs).astype(np.float32),
                carried=carried,
                labels=labels,
                train_counts=counts,
                method=method,
            )
        )
    return runs


def drag_times(page: Path) -> tuple[str, float, list[float], float]:
    """The browser, seconds to open the page, milliseconds of each drag and of a drag's processor time."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        started = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("#what-if:visible")
        opened = time.perf_counter() - started
        tab.locator("#what-if").scroll_into_view_if_needed()
        shares = [10 + 80 * step / DRAGS for step in range(DRAGS)]
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def busy() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return next(1000 * metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

        before = busy()
        times: list[float] = tab.evaluate(DRAG, shares)
        processor = (busy() - before) / DRAGS
        name = f"Chromium {browser.version}"
        browser.close()
    return name, opened, sorted(times), processor


def main() -> None:
    runs = simulated_runs()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        started = time.perf_counter()
        compare(runs)
        compared = time.perf_counter() - started
        started = time.perf_counter()
        write_report(runs, page, title="100 classes, 10,000 images")
        made = time.perf_counter() - started
        size = page.stat().st_size
        browser, opened, times, processor = drag_times(page)
    rows = (
        ("size of the page, MB", f"{size / 1e6:.2f}"),
        ("time to make it, s", f"{made:.1f}"),
        ("of that, scoring the runs on the eleven mixes, s", f"{compared:.1f}"),
        ("time to open it in the browser, until the panel shows, s", f"{opened:.2f}"),
        ("from drag to repaint, median, ms", f"{statistics.median(times):.1f}"),
        ("from drag to repaint, 95 % quantile, ms", f"{times[int(0.95 * len(times))]:.1f}"),
        ("from drag to repaint, longest, ms", f"{times[-1]:.1f}"),
        ("processor time of a drag, main thread, mean, ms", f"{processor:.1f}"),
    )
    caption = (
        f"{CLASSES} classes, {IMAGES:,} images, {len(METHODS)} methods with one run each; {DRAGS} drags. "
        "The page shows a frame every 16.7 ms at most, and a drag waits for the next one."
    )
    table = markdown(Table(("measure", "value"), rows, caption))
    print(table)
    RESULTS.write_text(
        "\n".join(
            [
                "# The report of 100 classes and 10,000 images",
                "",
                f"{date.today()}, {platform.machine()} CPU, {num_threads()} threads, "
                f"Python {platform.python_version()}, NumPy {np.__version__}, {browser}, headless, "
                f"Playwright {version('playwright')}.",
                f"Command: `python -m benchmarks.report_page`. {os.cpu_count()} processors, shared with "
                f"other work: load average {os.getloadavg()[0]:.1f}.",
                "",
                table,
            ]
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
