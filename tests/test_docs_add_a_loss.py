"""Does to a copy of the package what docs/losses.md tells the reader to do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import priorshift

PAGE = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
USE = """
import doctest, torch
from priorshift import Prior
from priorshift.losses import CrossEntropyLoss, PolyLoss, _poly
from priorshift.training.build import build_loss, loss_names
from priorshift.training.config import Part, Stage

prior = Prior.from_counts([6, 3, 1])
logits, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, -100])
built = build_loss(Stage(loss=Part(name="poly", options={"epsilon": 2.0}), epochs=1), prior)
share = logits[:7].softmax(1)[torch.arange(7), labels[:7]]
by_hand = (-share.log() + 2 * (1 - share)).mean()
plain = PolyLoss(prior, epsilon=0.0)

assert loss_names()["poly"] == "PolyLoss"
assert torch.allclose(built(logits, labels), by_hand, rtol=1e-12)
assert torch.equal(plain(logits, labels), CrossEntropyLoss(prior)(logits, labels))
assert (plain.carried_by, built.carried_by, built.carried_prior) == ("theory", "convention", prior)
assert torch.autograd.gradcheck(lambda f: built(f, labels), logits.requires_grad_())
results = doctest.testmod(_poly)
assert results.attempted > 0 and results.failed == 0
"""


def block(language):
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return code


@pytest.fixture
def copied(tmp_path):
    """A copy of the package with the file and the line of the page."""
    package = tmp_path / "priorshift"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(priorshift.__file__).parent, package, ignore=ignore)
    (package / "losses" / "_poly.py").write_text(block("python"), encoding="utf-8")
    with (package / "losses" / "__init__.pyi").open("a", encoding="utf-8") as stub:
        stub.write(block("pyi"))
    return tmp_path


def test_a_loss_is_added_by_the_file_and_the_line_that_the_page_shows(copied):
    assert block("pyi").count("\n") == 1
    subprocess.run(
        [sys.executable, "-c", USE], check=True, cwd=copied, env=os.environ | {"PYTHONPATH": str(copied)}
    )
