"""When compensation costs accuracy: the logits of a briefly trained network are too flat for it.

    python -m benchmarks.compensation_cost

Trains the quickstart's methods for 30 and for 100 epochs. One scale of the logits is fitted per run on the
validation split (temperature scaling); then the test split is judged as trained, compensated, and scaled and
compensated. Writes benchmarks/results/compensation_cost.md.
"""

import platform
import tempfile
from collections import defaultdict
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

from priorshift import Predictions, Prior
from priorshift.evaluation import Spread, evaluate
from priorshift.recipes import digits_balanced_softmax, digits_lade, digits_softmax
from priorshift.report import Table, markdown
from priorshift.shift import target_prior
from priorshift.training import TrainConfig, predict, train

SEEDS = range(3)
EPOCHS = (30, 100)
MIXES = ("forward:50", "uniform", "backward:50")
WAYS = ("as trained", "compensated", "scaled, compensated")


def fitted_scale(validation: Predictions) -> float:
    """The factor on the logits, moved to the uniform mix, that minimizes the NLL of a balanced split."""
    logits = torch.tensor(validation.adjusted(Prior.uniform(validation.num_classes)).logits).double()
    labels = torch.tensor(validation.labels)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scale * logits, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return scale.item()


def judged(config: TrainConfig) -> tuple[float, dict[tuple[str, str], dict[str, float | None]]]:
    """The scale fitted on the validation split, and the scores on the test split by mix and way."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder))
        scale = fitted_scale(predict(Path(folder), "validation"))
        test = predict(Path(folder))
    uniform = test.adjusted(Prior.uniform(test.num_classes))
    scaled = replace(uniform, logits=scale * uniform.logits)
    scores = {}
    for mix in MIXES:
        target = target_prior(mix, test.train_counts)
        scores[mix, WAYS[0]] = evaluate(test, target, compensate=False).scores
        scores[mix, WAYS[1]] = evaluate(test, target).scores
        scores[mix, WAYS[2]] = evaluate(scaled, target).scores
    return scale, scores


def main() -> None:
    torch.set_num_threads(1)
    scales, values = defaultdict(list), defaultdict(list)
    for epochs in EPOCHS:
        for recipe in (digits_softmax, digits_balanced_softmax, digits_lade):
            for seed in SEEDS:
                config = replace(recipe(), seed=seed)
                config = replace(config, stages=(replace(config.stages[0], epochs=epochs),))
                scale, scores = judged(config)
                scales[epochs, config.method].append(scale)
                for (mix, way), table in scores.items():
                    for name in ("accuracy", "nll"):
                        values[epochs, config.method, mix, way, name].append(table[name])
    rows = tuple(
        (
            f"{method}, {epochs} epochs",
            str(Spread.of(scales[epochs, method])),
            mix,
            *(Spread.of(values[epochs, method, mix, way, "accuracy"]).percent() for way in WAYS),
            *(str(Spread.of(values[epochs, method, mix, way, "nll"])) for way in WAYS[1:]),
        )
        for epochs, method in scales
        for mix in MIXES
    )
    headers = ("run", "scale", "mix", *(f"{way}, %" for way in WAYS), *(f"{way}, NLL" for way in WAYS[1:]))
    caption = f"Test split weighted to the mix; mean ± sd over {len(SEEDS)} seeds."
    table = markdown(Table(headers, rows, caption))
    text = "\n".join(
        [
            "# What compensation costs, and why",
            "",
            f"{date.today()}, {platform.machine()} CPU, one thread, Python {platform.python_version()}, "
            f"torch {torch.__version__}. Command: `python -m benchmarks.compensation_cost`.",
            "The scale of the logits was fitted on the validation split, one number per run.",
            "",
            table,
        ]
    )
    print(table)
    Path("benchmarks/results/compensation_cost.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
