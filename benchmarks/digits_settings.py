"""How the settings of the digits recipes were chosen: on the validation split, over three seeds.

    python -m benchmarks.digits_settings

The test split is never looked at. Writes benchmarks/results/digits_settings.md.
"""

import platform
import tempfile
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path

import torch

from priorshift.evaluation import Spread, evaluate
from priorshift.recipes import digits_balanced_softmax, digits_lade, digits_softmax
from priorshift.report import Table, markdown
from priorshift.training import Part, TrainConfig, predict, train

SEEDS = range(3)
EPOCHS = (60, 100)
WEIGHT_DECAYS = (1e-4, 5e-4)
LADE_OPTIONS = tuple(product((0.01, 0.1), (0.01, 0.1)))


def validated(config: TrainConfig) -> tuple[str, str]:
    """Balanced accuracy (percent) and NLL on the validation split, compensated to the uniform mix."""
    accuracies, nlls = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            train(replace(config, seed=seed), Path(folder))
            predictions = predict(Path(folder), "validation")
        scores = evaluate(predictions, [1.0] * predictions.num_classes).scores
        accuracies.append(1 - scores["balanced_error"])
        nlls.append(scores["nll"])
    return Spread.of(accuracies).percent(), str(Spread.of(nlls))


def with_settings(config: TrainConfig, epochs: int, weight_decay: float) -> TrainConfig:
    stage = config.stages[0]
    optimizer = replace(stage.optimizer, weight_decay=weight_decay)
    return replace(config, stages=(replace(stage, epochs=epochs, optimizer=optimizer),))


def main() -> None:
    torch.set_num_threads(1)
    schedule = []
    for epochs, weight_decay in product(EPOCHS, WEIGHT_DECAYS):
        for recipe in (digits_softmax, digits_balanced_softmax):
            config = with_settings(recipe(), epochs, weight_decay)
            schedule.append((config.method, f"{epochs}", f"{weight_decay:g}", *validated(config)))
            print(*schedule[-1], sep="  ", flush=True)
    regulariser = []
    for alpha, lam in LADE_OPTIONS:
        config = digits_lade()
        loss = Part(name="lade", options={"alpha": alpha, "lam": lam})
        config = replace(config, stages=(replace(config.stages[0], loss=loss),))
        regulariser.append((config.method, f"{alpha:g}", f"{lam:g}", *validated(config)))
        print(*regulariser[-1], sep="  ", flush=True)
    caption = "Validation split, 14 images of each class; mean ± sd over 3 seeds."
    scores = ("balanced accuracy, %", "NLL")
    text = "\n".join(
        [
            "# Settings of the digits recipes",
            "",
            f"{date.today()}, {platform.machine()} CPU, one thread, Python {platform.python_version()}, "
            f"torch {torch.__version__}. Command: `python -m benchmarks.digits_settings`.",
            "Compensated to the uniform mix. The test split was not looked at.",
            "",
            markdown(Table(("method", "epochs", "weight decay", *scores), tuple(schedule), caption)),
            "LADE at the epochs and the weight decay of the recipes:",
            "",
            markdown(Table(("method", "alpha", "lambda", *scores), tuple(regulariser), caption)),
        ]
    )
    Path("benchmarks/results/digits_settings.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
