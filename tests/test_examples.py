"""The examples of training loops learn, and gain by adjusting; their page shows what stands in the files."""

import importlib.util
import re
import runpy
from functools import partial
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from priorshift import Prior

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "your_loop.md").read_text(encoding="utf-8")
NEEDS = {
    "torch_loop": (),
    "huggingface_trainer": ("transformers", "accelerate"),
    "lightning_module": ("lightning",),
    "timm_train": ("timm",),
    "lightgbm_objective": ("lightgbm",),
    "segmentation": (),
    "text_classifier": (),
}
# Lightning's own: how it flattens batches, and its advice on workers.
LIGHTNING = ("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
SLOW_TO_IMPORT = {"huggingface_trainer", "lightning_module", "timm_train"}


def load(name, monkeypatch):
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install priorshift[examples]")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.filterwarnings(*LIGHTNING)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_TO_IMPORT)) for name in NEEDS]
)
def test_an_example_learns_and_gains_by_adjusting(name, monkeypatch, capsys):
    numbers = load(name, monkeypatch)["main"]()
    assert numbers["last_loss"] < 0.5 * numbers["first_loss"]
    assert numbers["adjusted_accuracy"] > numbers["plain_accuracy"] + 0.01
    assert numbers["plain_balanced"] > 0.4
    printed = capsys.readouterr().out
    for knowledge in ("plain", "adjusted"):
        accuracy, balanced = numbers[f"{knowledge}_accuracy"], numbers[f"{knowledge}_balanced"]
        assert f"{knowledge:8}  accuracy {accuracy:.1%}, balanced accuracy {balanced:.1%}\n" in printed


def test_adjusting_to_the_uniform_mix_gains_balanced_accuracy(monkeypatch):
    numbers = load("text_classifier", monkeypatch)["main"]()
    assert numbers["adjusted_balanced"] > numbers["plain_balanced"] + 0.05


def test_the_objective_for_boosting_has_the_derivatives_of_the_loss(monkeypatch):
    train = Prior([0.7, 0.2, 0.1])
    objective = load("lightgbm_objective", monkeypatch)["LogitAdjustedObjective"](train)
    scores = np.random.default_rng(0).normal(size=(5, 3))
    labels = np.array([0.0, 2, 1, 1, 0])
    data = SimpleNamespace(get_label=lambda: labels)

    def loss(logits, label):
        return F.cross_entropy((logits + torch.tensor(train.log_probs))[None], label[None], reduction="sum")

    rows = list(zip(torch.from_numpy(scores), torch.from_numpy(labels).long(), strict=True))
    gradient, curvature = objective(scores, data)
    for index, (row, label) in enumerate(rows):
        of_scores = partial(loss, label=label)
        wanted = torch.autograd.functional.jacobian(of_scores, row)
        np.testing.assert_allclose(gradient[index], wanted.numpy(), atol=1e-12)
        wanted = torch.autograd.functional.hessian(of_scores, row).diagonal() * 3 / 2
        np.testing.assert_allclose(curvature[index], wanted.numpy(), atol=1e-12)
    mean = sum(loss(row, label) for row, label in rows) / 5
    assert objective.loss(scores, data) == ("loss", pytest.approx(mean.item()), False)


@pytest.mark.slow
def test_the_loss_for_trainer_over_accumulated_batches_is_that_of_the_whole(monkeypatch):
    main = load("huggingface_trainer", monkeypatch)["main"]
    given = {}

    def trainer(**settings):
        given.update(settings)
        raise InterruptedError

    monkeypatch.setitem(main.__globals__, "Trainer", trainer)
    with pytest.raises(InterruptedError):
        main()
    compute_loss = given["compute_loss_func"]
    logits = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, -100, 9, 9, 1, 4])
    whole = compute_loss(SimpleNamespace(logits=logits), labels)
    parts = [
        compute_loss(SimpleNamespace(logits=logits[rows]), labels[rows], num_items_in_batch=torch.tensor(6))
        for rows in (slice(0, 2), slice(2, 7))
    ]
    torch.testing.assert_close(sum(parts), whole)
    counts = torch.bincount(torch.stack([sample["labels"] for sample in given["train_dataset"]]))
    shifted = logits.double() + (counts / counts.sum()).double().log()
    torch.testing.assert_close(whole, F.cross_entropy(shifted, labels).float())


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_links_every_example_and_shows_lines_of_it():
    sections = {}
    for section in PAGE.split("\n## ")[1:]:
        for name in re.findall(r"\]\(\.\./examples/(\w+)\.py\)", section):
            sections[name] = section
    assert sections.keys() == NEEDS.keys()
    for name, section in sections.items():
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        assert blocks
        for block in blocks:
            assert any(indent(block, " " * depth) in text for depth in (0, 4, 8)), block


def test_the_page_links_to_pages_that_exist():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links and all((ROOT / "docs" / link).exists() for link in links)
