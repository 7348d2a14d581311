import base64
import hashlib
import html
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priorshift import Predictions, Prior, report, shift
from priorshift.evaluation import evaluate
from priorshift.metrics import group_accuracy
from priorshift.report import page as page_module
from priorshift.report import what_if
from test_report import HOSTILE, Page, make_run

COUNTS_30 = (400 * 100 ** (-np.arange(30) / 29)).round().astype(int)
SCORES = ("accuracy", "many", "medium", "few", "ece")


@pytest.fixture(scope="module")
def runs():
    return [
        make_run(method, seed, counts=COUNTS_30, num_samples=900)
        for method in ("Softmax", "LADE")
        for seed in range(2)
    ]


def slow_what_if(run, target, compensated):
    """Top-1, group accuracies, ECE and class accuracies, sample by sample, as they are defined."""
    logits, labels = run.logits.astype(float), run.labels
    counts, target = run.train_counts, np.asarray(target, dtype=float)
    if compensated:
        with np.errstate(divide="ignore"):
            logits = logits - np.log(run.carried.probs) + np.log(target)
    hits, masses, confidences = [], [], []
    for row, label in zip(logits, labels, strict=True):
        probs = np.exp(row - row.max())
        probs /= probs.sum()
        hits.append(float(np.argmax(row) == label))
        masses.append(target[label] / (labels == label).sum())
        confidences.append(probs.max())
    hits, masses, confidences = map(np.array, (hits, masses, confidences))
    by_class = [hits[labels == y].mean() if target[y] > 0 else np.nan for y in range(len(target))]
    members = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    grouped = {}
    for name, inside in members.items():
        known = [by_class[y] for y in np.flatnonzero(inside & (target > 0))]
        grouped[name] = np.mean(known) if known else None
    gaps = [
        abs((masses * (hits - confidences))[(m / 20 < confidences) & (confidences <= (m + 1) / 20)].sum())
        for m in range(20)
    ]
    return {"accuracy": (masses * hits).sum(), **grouped, "ece": sum(gaps)}, by_class


@pytest.mark.parametrize(
    "target",
    [Prior.uniform(30).probs, shift.backward_prior(COUNTS_30, 50).probs, np.arange(30) % 3 * 1.0],
    ids=["uniform", "backward", "with absent classes"],
)
def test_what_if_is_the_definition_taken_over_runs(runs, target):
    target = target / target.sum()
    outcomes = what_if.what_if(runs, target)
    assert [(outcome.method, outcome.compensated) for outcome in outcomes] == [
        (method, flag) for method in ("Softmax", "LADE") for flag in (False, True)
    ]
    for outcome in outcomes:
        expected = [
            slow_what_if(run, target, outcome.compensated) for run in runs if run.method == outcome.method
        ]
        for name in SCORES:
            values = [scores[name] for scores, _ in expected]
            assert outcome.scores[name].mean == pytest.approx(np.mean(values), abs=1e-6)
            assert outcome.scores[name].sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        classes = np.mean([by_class for _, by_class in expected], axis=0)
        np.testing.assert_allclose(outcome.class_accuracy, classes, atol=1e-12)


def test_what_if_gives_the_scores_of_an_evaluation(runs):
    target = shift.forward_prior(COUNTS_30, 10)
    for compensate, outcome in zip((False, True), what_if.what_if(runs[:1], target), strict=True):
        scores = evaluate(runs[0], target, compensate=compensate).scores
        assert {name: outcome.scores[name].mean for name in SCORES} == {name: scores[name] for name in SCORES}


def test_an_empty_group_has_no_accuracy():
    outcome = what_if.what_if([make_run()], Prior.uniform(10))[0]
    assert outcome.scores["many"] is not None and outcome.scores["few"] is not None
    only_many = what_if.what_if([make_run()], [1, *[0] * 9])[0]
    assert (
        only_many.scores["few"] is None and only_many.scores["many"].mean == only_many.scores["accuracy"].mean
    )


# The copy


def distances(run):
    likelihoods = run.logits.astype(float) - run.carried.log_probs
    return likelihoods.max(axis=1, keepdims=True) - likelihoods


def test_a_copy_with_room_holds_every_sample_once_by_class(runs):
    copy = what_if.compact(runs, 10**6)
    assert copy.codes.shape == (4, 900, 30) and copy.codes.dtype == np.uint8
    assert sorted(copy.rows.tolist()) == list(range(900))
    assert copy.counts.tolist() == [30] * 30
    assert runs[0].labels[copy.rows].tolist() == [label for label in range(30) for _ in range(30)]


def test_rounding_moves_a_distance_by_half_a_step_of_its_logarithm(runs):
    copy = what_if.compact(runs, 10**6)
    for run, decoded in zip(runs, copy.decoded(runs), strict=True):
        moved = np.abs(np.log1p(distances(decoded)) - np.log1p(distances(run)[copy.rows]))
        assert moved.max() <= copy.step / 2 + 1e-12
        assert moved.max() > copy.step / 4
        assert np.array_equal(decoded.labels, run.labels[copy.rows]) and decoded.carried is run.carried
    assert copy.codes.min() == 0 and copy.codes.max() == 254


@given(st.floats(0.01, 1000), st.integers(0, 10**6))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_any_scale_of_logits_keeps_its_order(scale, seed):
    logits = scale * np.random.default_rng(seed).standard_normal((8, 4))
    run = Predictions(logits=logits, carried=Prior.uniform(4), labels=np.arange(8) % 4)
    copy = what_if.compact([run], 10**4)
    (decoded,) = copy.decoded([run])
    exact, rounded = logits[copy.rows], decoded.logits
    for one in range(4):
        for other in range(4):
            rises = exact[:, one] <= exact[:, other]
            assert (rounded[rises, one] <= rounded[rises, other]).all()


def test_a_class_that_is_ruled_out_stays_so():
    logits = np.array([[0.0, -np.inf, -2.0], [-np.inf, 0.0, -500.0], [0.0, 0.0, 0.0]])
    run = Predictions(logits=logits, carried=Prior.uniform(3), labels=np.arange(3))
    copy = what_if.compact([run], 100)
    assert copy.codes[0][:, :2].tolist() == [[0, 255], [255, 0], [0, 0]]
    probs = np.exp(copy.decoded([run])[0].log_probs)
    assert probs[0, 1] == 0 and probs[1].tolist() == pytest.approx([0, 1, 0])


def test_logits_that_say_nothing_are_copied():
    run = Predictions(logits=np.zeros((4, 2)), carried=Prior.uniform(2), labels=np.arange(4) % 2)
    (decoded,) = what_if.compact([run], 100).decoded([run])
    assert np.unique(np.exp(decoded.log_probs)).tolist() == pytest.approx([0.5], abs=1e-15)


@pytest.mark.parametrize("max_bytes", [24_000, 40_000, 100_003])
def test_a_copy_fits_and_keeps_the_same_share_of_every_class(runs, max_bytes):
    copy = what_if.compact(runs, max_bytes)
    assert max_bytes - 2 * 4 * 30 * 30 < len(what_if.as_base64(copy)) <= max_bytes
    assert copy.counts.max() == copy.counts.min() and copy.counts.sum() == len(copy.rows)
    assert len(set(copy.rows.tolist())) == len(copy.rows)
    assert np.bincount(runs[0].labels[copy.rows], minlength=30).tolist() == copy.counts.tolist()


def test_rare_classes_keep_five_samples_or_all_they_have():
    labels = np.repeat(np.arange(4), [1000, 100, 7, 3])
    logits = np.random.default_rng(0).standard_normal((len(labels), 4))
    run = Predictions(logits=logits, carried=Prior.uniform(4), labels=labels)
    copy = what_if.compact([run], 4 * 4 * 60 // 3)
    assert copy.counts.tolist()[2:] == [5, 3] and copy.counts[0] > 5 * copy.counts[1] > 20
    assert copy.counts.sum() <= 60
    assert what_if.compact([run], 4 * 4 * 18 // 3).counts.tolist() == [5, 5, 5, 3]
    assert what_if.compact([run], 4 * 4 * 17 // 3) is None


def test_a_subset_is_as_hard_as_its_class():
    # Of two classes a sample is right at the uniform mix exactly where it is easy enough.
    labels = np.arange(2000) % 2
    logits = np.random.default_rng(1).standard_normal((2000, 2))
    logits[np.arange(2000), labels] += 0.7
    run = Predictions(logits=logits, carried=Prior.uniform(2), labels=labels, train_counts=[200, 10])
    copy = what_if.compact([run], 200)
    assert copy.counts.tolist() == [37, 37]
    (full, _), (part, _) = (
        what_if.what_if(judged, Prior.uniform(2)) for judged in ([run], copy.decoded([run]))
    )
    for one, other in zip(full.class_accuracy, part.class_accuracy, strict=True):
        assert abs(one - other) <= 1 / 37


def test_the_stated_error_is_the_largest_over_the_mixes(runs):
    copy = what_if.compact(runs, 40_000)
    mixes = [Prior.uniform(30), shift.backward_prior(COUNTS_30, 50)]
    error = what_if.largest_error(copy, runs, mixes)
    assert error.num_mixes == 2 + 3 + 3
    found = {name: [] for name in SCORES}
    mixes += shift.dirichlet_priors(30, 1.0, 3, seed=0)
    mixes += [Prior(COUNTS_30 * (COUNTS_30 <= 100)), Prior(COUNTS_30 * (COUNTS_30 >= 20))]
    mixes.append(Prior(COUNTS_30 * ((COUNTS_30 < 20) | (COUNTS_30 > 100))))
    for mix in mixes:
        for one, other in zip(
            what_if.what_if(runs, mix), what_if.what_if(copy.decoded(runs), mix), strict=True
        ):
            for name in SCORES:
                if one.scores[name] is not None:
                    found[name].append(abs(one.scores[name].mean - other.scores[name].mean))
    assert error.accuracy == max(found["accuracy"]) and error.ece == max(found["ece"])
    assert error.groups == max(max(found[name]) for name in ("many", "medium", "few"))
    whole = what_if.largest_error(what_if.compact(runs, 10**6), runs, [])
    assert whole.accuracy < error.accuracy and whole.accuracy < 0.003


def test_groups_are_those_of_the_metric():
    counts = np.array([100, 101, 20, 19, 0, 500, 99])
    labels = np.arange(7)
    for group in what_if.groups(counts):
        alone = np.where(np.isin(labels, group.classes), labels, (labels + 1) % 7)
        scores = group_accuracy(alone, labels, counts)
        assert {name: getattr(scores, name) for name in ("many", "medium", "few")} == {
            name: float(name == group.name.lower()) for name in ("many", "medium", "few")
        }
    assert sorted(label for group in what_if.groups(counts) for label in group.classes) == list(range(7))


# The page


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("what_if") / "page.html"
    return Page(report.write_report(runs, path, title="t", mixes=["uniform", "backward:10"]))


def panel_data(page):
    return json.loads(re.search(r'id="what-if-data">(.*?)</script>', page.source, re.DOTALL)[1])


def test_the_page_holds_the_copy_and_what_it_needs(page, runs):
    data = panel_data(page)
    copy = what_if.compact(runs, 10**6)
    codes = re.search(r'id="what-if-codes">(.*?)</script>', page.source)[1]
    assert base64.b64decode(codes) == copy.codes.tobytes()
    assert data["step"] == copy.step and data["counts"] == copy.counts.tolist()
    assert [run["method"] for run in data["runs"]] == [0, 0, 1, 1]
    assert data["runs"][0]["carried"] == runs[0].carried.probs.tolist()
    presets = {preset["name"]: preset["shares"] for preset in data["presets"]}
    assert list(presets) == [
        "uniform",
        "training mix",
        "backward:10",
        "test images",
        "test images, estimated by Softmax",
        "test images, estimated by LADE",
    ]
    assert presets["training mix"] == pytest.approx((COUNTS_30 / COUNTS_30.sum()).tolist(), abs=1e-6)
    assert presets["backward:10"] == shift.backward_prior(COUNTS_30, 10).probs.tolist()
    assert presets["test images"] == pytest.approx([1 / 30] * 30)
    assert [part["name"] for part in data["parts"]] == ["Many", "Medium", "Few"]


def test_the_page_states_the_error_and_never_less(page):
    error = panel_data(page)["error"]
    assert "judges all 900 test images" in page.text
    stated = re.search(
        r"Over (\d+) mixes its top-1 was within ([\d.]+) points, its group accuracies within ([\d.]+) points "
        r"and its ECE within ([\d.]+)",
        " ".join(page.text.split()),
    )
    numbers = [float(number) for number in stated.groups()]
    assert numbers[0] == error["num_mixes"]
    for shown, exact, digit in (
        (numbers[1], 100 * error["accuracy"], 0.01),
        (numbers[2], 100 * error["groups"], 0.01),
        (numbers[3], error["ece"], 0.0001),
    ):
        assert exact <= shown < exact + digit + 1e-12


def test_the_browser_may_run_this_script_alone_and_fetch_nothing(page):
    (policy,) = [
        meta["content"] for meta in page.tags("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ") and "base-uri 'none'; form-action 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"<[a-z]+[^>]* on[a-z]+=", page.source)
    assert "innerHTML" not in scripts[0] and "eval" not in scripts[0]


def test_questions_come_in_the_order_a_reader_asks_them(page):
    assert re.findall(r"<h2>(.*?)</h2>", page.source) == [
        "Which method, on which mix?",
        "What happens to each class group?",
        "Can I trust the probabilities?",
        "What does the model think the target mix is?",
        "How was this run?",
    ]


def test_the_page_shows_the_mix_that_each_method_estimates(page, runs):
    table = next(table for table in page.tables if table and table[0] and table[0][-1] == "Misplaced")
    assert table[0][1:-1] == ["Many", "Medium", "Few"]
    assert [row[0] for row in table[1:]] == [
        "Training images",
        "Test images, by their labels",
        "Test images, estimated by Softmax",
        "Test images, estimated by LADE",
    ]
    many = COUNTS_30 > 100
    share = 100 * COUNTS_30[many].sum() / COUNTS_30.sum()
    assert float(table[1][1]) == pytest.approx(float(share), abs=0.051)
    assert float(table[2][1]) == pytest.approx(100 * float(many.sum()) / 30, abs=0.051)
    assert table[2][-1] == "0.0"
    off = np.maximum(COUNTS_30 / COUNTS_30.sum() - 1 / 30, 0).sum()
    assert float(table[1][-1]) == pytest.approx(100 * float(off), abs=0.051)
    data = page.data()["estimates"]["LADE"]
    assert len(data) == 2 and table[4][-1].count("±") == 1


def test_a_page_that_would_be_too_large_judges_fewer_images_and_says_so(page, runs, tmp_path, monkeypatch):
    limit = len(page.source.encode()) - 60_000
    monkeypatch.setattr(page_module, "MOST_BYTES", limit)
    path = report.write_report(runs, tmp_path / "p", title="t", mixes=["uniform", "backward:10"])
    assert limit - 6_000 < path.stat().st_size <= limit
    smaller = Page(path)
    kept = sum(panel_data(smaller)["counts"])
    assert 400 < kept < 900 and f"judges {kept} of the 900 test images" in " ".join(smaller.text.split())


def test_a_page_without_room_for_a_panel_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_BYTES", 100_000)
    run = make_run(num_samples=100)
    page = Page(report.write_report([run], tmp_path / "p", title="t", mixes=["uniform"]))
    assert "is left out: too few test images of each class fit" in page.text
    assert "what-if-data" not in page.source and len(page.tags("script")) == 1
    assert any("script-src 'none'" in meta.get("content", "") for meta in page.tags("meta"))


def test_hostile_names_do_not_leave_the_data(tmp_path):
    run = make_run("</script><b>x", class_names=HOSTILE, num_samples=100)
    page = Page(report.write_report([run], tmp_path / "p", title="t", mixes=["uniform"]))
    assert page.tags("b") == page.tags("img") == []
    data = panel_data(page)
    assert data["classes"] == list(HOSTILE) and data["methods"][0]["name"] == "</script><b>x"
    assert data["presets"][-1]["name"] == "test images, estimated by </script><b>x"
    labels = re.findall(r'<label for="what-if-part-[^>]*>(.*?)</label>', page.source, re.DOTALL)
    assert sorted(map(html.unescape, labels)) == sorted(HOSTILE)
