"""The Python of docs/estimation.md runs in order."""

import re
from pathlib import Path

import numpy as np

from priorshift import Predictions, Prior

PAGE = (Path(__file__).parents[1] / "docs" / "estimation.md").read_text(encoding="utf-8")


def scored(size, mix, seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=size, p=mix)
    logits = rng.normal(size=(size, 3)) + 2 * np.eye(3)[labels]
    return Predictions(logits=logits, labels=labels, carried=Prior([0.6, 0.3, 0.1]))


def test_every_python_block_runs_in_order(capsys):
    traffic = scored(200, [0.1, 0.3, 0.6], 0)
    namespace = {
        "traffic": traffic,
        "held_out": scored(300, [0.6, 0.3, 0.1], 1),
        "train_rates": np.array([0.1, 0.5, 0.3]),
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[0], "docs/estimation.md, block 0", "exec"), namespace)
    assert "Label shift" in capsys.readouterr().out
    assert namespace["logits"].shape == (200, 3)
    exec(compile(blocks[1], "docs/estimation.md, block 1", "exec"), namespace)
    assert namespace["found"].rates.shape == (3,)
