"""The array wing on a machine without torch: everything that only reads scores, and the verbs that do."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from priorshift import Predictions, Prior

WITHOUT_TORCH = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""

MODULES = (
    "priorshift",
    "priorshift.adjustment",
    "priorshift.cli",
    "priorshift.commands.adapt",
    "priorshift.commands.estimate",
    "priorshift.commands.evaluate",
    "priorshift.commands.figure",
    "priorshift.commands.report",
    "priorshift.estimation",
    "priorshift.evaluation",
    "priorshift.metrics",
    "priorshift.predictions",
    "priorshift.priors",
    "priorshift.report",
    "priorshift.report.papers",
    "priorshift.shift",
    "priorshift.sklearn",
    "priorshift.streams",
)
"""The public modules of the array wing."""


def python(code, *argv, folder=None, code_of_exit=0):
    """Run code in a process that cannot import torch, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH + textwrap.dedent(code), *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == code_of_exit, done.stderr
    return done.stdout if code_of_exit == 0 else done.stderr


def priorshift(*argv, folder, code_of_exit=0):
    """Run a verb in a process that cannot import torch, and give what it prints."""
    run = "from priorshift.cli import main\nsys.exit(main(sys.argv[1:]))"
    return python(run, *argv, folder=folder, code_of_exit=code_of_exit)


def scored(mix, size, seed, **parts):
    """Exact logits, which carry the uniform prior, of Gaussian classes drawn from a mix."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(mix), size=size, p=mix)
    centers = 2 * np.eye(len(mix))
    samples = centers[labels] + rng.normal(size=(size, len(mix)))
    return Predictions(
        logits=samples @ centers.T,
        labels=labels,
        carried=Prior.uniform(3),
        train_counts=[500, 100, 20],
        class_names=("cat", "dog", "owl"),
        **parts,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without-torch")
    softmax = scored([0.2, 0.3, 0.5], 1500, seed=0, method="Softmax")
    softmax.save(folder / "Softmax.safetensors")
    replace(softmax, logits=0.8 * softmax.logits, method="LADE").save(folder / "LADE.safetensors")
    for split, seed in (("test", 1), ("validation", 2)):
        predictions = scored([1 / 3] * 3, 1000, seed=seed, method="Softmax")
        predictions.save(folder / "run" / f"predictions-{split}.safetensors")
    return folder


def test_the_finder_refuses():
    assert "No module named 'torch'" in python("import torch", code_of_exit=1)


def test_every_name_of_every_public_module_is_there_and_nothing_loads_torch():
    printed = python(
        """
        import importlib
        for module in sys.argv[1:]:
            room = importlib.import_module(module)
            for name in getattr(room, "__all__", ()):
                getattr(room, name)
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "torchvision", "timm"}))
        """,
        *MODULES,
    )
    assert printed == "[]\n"


def test_a_target_prior_is_estimated_with_validation_data_by_every_method_and_saved(folder):
    python(
        """
        import numpy as np
        from priorshift import Predictions
        from priorshift.estimation import METHODS, estimate_prior
        from priorshift.evaluation import adapt, evaluate
        test = Predictions.load("Softmax.safetensors")
        validation = Predictions.load("run/predictions-validation.safetensors")
        frequencies = np.bincount(test.labels) / len(test.labels)
        for method in METHODS:
            estimate = estimate_prior(test, method=method, validation=validation)
            assert np.abs(estimate.prior.probs - frequencies).max() < 0.06, (method, estimate.prior)
        adapted = adapt(test, estimate)
        adapted.save("adapted.safetensors")
        assert np.array_equal(Predictions.load("adapted.safetensors").logits, adapted.logits)
        assert evaluate(test, [0.2, 0.3, 0.5]).scores["accuracy"] > 0.5
        """,
        folder=folder,
    )


def test_a_stream_is_followed_saved_and_merged(folder):
    python(
        """
        from priorshift import Predictions, Prior
        from priorshift.streams import StreamingPrior, estimate_files
        logits = Predictions.load("Softmax.safetensors").logits
        first, second = (StreamingPrior(carried=Prior.uniform(3), stream=name) for name in "ab")
        first.update(logits[:600])
        second.update(logits[600:])
        first.save("first.state")
        merged = StreamingPrior.load("first.state").merge(second)
        assert merged.num_samples == 1500
        assert merged.estimate().prior.matches(estimate_files("Softmax.safetensors").estimate().prior)
        """,
        folder=folder,
    )


def test_tables_become_predictions_and_classifiers_adapt():
    python(
        """
        import numpy as np
        import pandas as pd
        from sklearn.naive_bayes import GaussianNB
        from priorshift import Predictions
        from priorshift.sklearn import PriorEstimator, PriorShiftClassifier
        rng = np.random.default_rng(0)
        y = rng.choice(["cat", "dog", "owl"], size=400, p=[0.6, 0.3, 0.1])
        X = rng.normal(size=(400, 2)) + 3 * np.eye(3)[np.unique(y, return_inverse=True)[1]][:, :2]
        classifier = PriorShiftClassifier(GaussianNB()).fit(X, y)
        before = classifier.predict_proba(X)
        probs = pd.DataFrame(before, columns=classifier.classes_).assign(label=y)
        mix = {"owl": 0.1, "dog": 0.3, "cat": 0.6}
        table = Predictions.from_frame(probs, carried=mix, label="label")
        array = Predictions.from_probs(before, carried=[0.6, 0.3, 0.1], labels=2 - table.labels)
        assert np.array_equal(table.logits[:, ::-1], array.logits) and table.class_names == tuple(mix)
        classifier.adapt(X[y != "cat"])
        assert classifier.target_prior_[0] < 0.2
        assert PriorEstimator(GaussianNB()).fit(X, y).estimate(X).prior["cat"] > 0.5
        """
    )


def test_the_verbs_that_read_scores_run(folder):
    held_out = "run/predictions-validation.safetensors"
    said = priorshift(
        *("adapt", "Softmax.safetensors", "--validation", held_out, "--report", "adapt.html"), folder=folder
    )
    assert "owl" in said and "report: adapt.html" in said
    assert "</html>" in (folder / "adapt.html").read_text(encoding="utf-8")
    assert Predictions.load(folder / "Softmax-adapted.safetensors").num_samples == 1500
    said = priorshift("estimate", "Softmax.safetensors", "--validation", held_out, folder=folder)
    assert "state: mix.state" in said
    for target in ("backward:50", "estimated"):
        assert "accuracy" in priorshift("evaluate", "LADE.safetensors", "--target", target, folder=folder)
    said = priorshift("report", "Softmax.safetensors", "LADE.safetensors", folder=folder)
    assert "uniform" in said and "</html>" in (folder / "report.html").read_text(encoding="utf-8")
    priorshift("figure", "la-figure-8", "Softmax.safetensors", "LADE.safetensors", folder=folder)
    assert (folder / "la-figure-8.svg").is_file()


def test_a_report_of_run_folders_shows_the_gap_to_the_true_prior(folder):
    priorshift("report", "run", "--output", "gaps.html", folder=folder)
    assert (folder / "gaps.html").is_file()


def test_a_verb_that_needs_torch_says_how_to_install_it(folder):
    said = priorshift("predict", "run", folder=folder, code_of_exit=2)
    assert (
        said.startswith("priorshift: `priorshift predict` needs torch") and 'pip install ".[torch]"' in said
    )
