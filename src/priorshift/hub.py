"""Trained runs in the file layout of the Hugging Face hub: weights, configs, and a card with scores."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from priorshift._files import written_whole
from priorshift.data import FeatureSet
from priorshift.evaluation import Comparison, compare
from priorshift.export import Description, Scorer, load_scorer
from priorshift.models import Classifier
from priorshift.predictions import Predictions
from priorshift.report import comparison_table, markdown
from priorshift.report.words import describe_carried
from priorshift.training import Run, TrainConfig, predict
from priorshift.training.build import build_model
from priorshift.training.run import load_weights

__all__ = ["load_pretrained", "push", "save_pretrained"]

CONFIG, TRAINING, WEIGHTS, CARD = "config.json", "training_config.json", "model.safetensors", "README.md"
FILES = (CONFIG, TRAINING, WEIGHTS, CARD)


def save_pretrained(run: str | Path, folder: str | Path, *, name: str = "", license: str = "") -> None:
    """Write a trained run as the four files of a model on the Hugging Face hub.

    - `model.safetensors`: the weights;
    - `config.json`: classes (`id2label`), carried prior, training counts, preparation of the images;
    - `training_config.json`: the config of the run, which can train it again;
    - `README.md`: the model card, with the accuracy on the standard class mixes, with and without
      compensation, measured on the run's test split. Its predictions are made where the run has none.

    Args:
        run: The run folder.
        folder: Where to; what is there by these names is replaced.
        name: Title of the card; by default the name of the run folder.
        license: Identifier of a licence as the hub knows it, such as `mit`; "" states none.

    Raises:
        FileNotFoundError: If there is no trained run.
        ValueError: If a file of the run cannot be read, or its test split cannot be judged on every mix.
    """
    source, folder = Run(Path(run)), Path(folder)
    scorer = load_scorer(source.folder)
    _, progress = source.load_weights()
    measured = source.predictions_file("test")
    predictions = Predictions.load(measured) if measured.is_file() else predict(source.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / WEIGHTS) as temporary:
        weights = {key: tensor.contiguous() for key, tensor in scorer.classifier.state_dict().items()}
        save_file(weights, temporary, metadata={"format": "pt"})
    shutil.copyfile(source.config_file, folder / TRAINING)
    names = scorer.description.class_names
    config = {
        "library_name": "priorshift",
        "architectures": [source.config().model.name],
        "id2label": {str(label): each for label, each in enumerate(names)},
        "label2id": {each: label for label, each in enumerate(names)},
        "stage": progress["stage"],
        **scorer.description.to_json(),
    }
    _write(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    title = name or source.folder.resolve().name
    _write(folder / CARD, _card(title, license, source.config(), scorer.description, predictions))


def load_pretrained(name: str | Path, *, revision: str | None = None) -> Scorer:
    """The scorer that `save_pretrained` or `push` wrote. Nothing in its files is executed.

    Args:
        name: A folder, or else an id on the hub, `owner/model`, which is downloaded and cached.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: If a file is missing.
        ModuleNotFoundError: If huggingface-hub is needed and not installed.
        ValueError: If a file cannot be read, or they contradict each other; the message names the folder.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=list(FILES)))
    for file in (CONFIG, TRAINING, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is no model of priorshift: it has no {file}.")
    training = TrainConfig.load(folder / TRAINING)
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        description, stage = Description.from_json(content), int(content["stage"])
        if not 0 <= stage < len(training.stages):
            raise ValueError(f"{TRAINING} has no stage {stage}")
        weights = load_file(folder / WEIGHTS)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is no model that can be read: {error}") from error
    model = _model(training, description, stage)
    load_weights(model, weights, folder / WEIGHTS, folder / TRAINING)
    return Scorer(model, description)


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    license: str = "",
    token: str | None = None,
) -> str:
    """Upload a trained run to the Hugging Face hub, in one commit, and make the repository where need be.

    Args:
        run: The run folder.
        repo_id: `owner/model`.
        private: Whether a new repository is private.
        license: As in `save_pretrained`.
        token: Of the hub; by default the one that `hf auth login` stored.

    Returns:
        The address of the commit.

    Raises:
        ModuleNotFoundError: If huggingface-hub is not installed.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(run, folder, name=repo_id, license=license)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload a run of priorshift"
        )
    return str(commit.commit_url)


def _model(training: TrainConfig, description: Description, stage: int) -> Classifier:
    # The data of the run are elsewhere; a model is built for their channels and classes alone.
    data = FeatureSet(
        torch.empty(0, description.input_shape[0]),
        torch.empty(0, dtype=torch.int64),
        description.class_names,
        fingerprint="",
    )
    return build_model(training, data, stage, pretrained=False)


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _card(
    title: str, license: str, config: TrainConfig, description: Description, predictions: Predictions
) -> str:
    comparison = compare([predictions])
    header: dict[str, Any] = {
        **({"license": license} if license else {}),
        "library_name": "priorshift",
        "pipeline_tag": "image-classification",
        "tags": ["priorshift", "long-tailed", "label-shift"],
        "model-index": [{"name": title, "results": [_result(config.data.name, comparison)]}],
    }
    return _CARD.format(
        # JSON is YAML: one entry a line.
        header="\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()),
        title=title,
        method=description.method,
        model=config.model.name,
        num_classes=description.num_classes,
        data=config.data.name,
        carried=describe_carried(predictions),
        input_name=description.input_name,
        shape=", ".join(map(str, description.input_shape)),
        table=markdown(comparison_table(comparison)),
        facts="\n".join(f"- {key}: {value}" for key, value in description.facts.items()),
    )


def _result(data: str, comparison: Comparison) -> dict[str, Any]:
    """The scores on the uniform mix, as the hub shows them beside a model."""
    scores = [(row.compensated, row.spreads["uniform"]["accuracy"]) for row in comparison.rows]
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data, "split": "test"},
        "metrics": [
            {
                "type": "accuracy",
                "name": f"Uniform class mix, {'compensated' if compensated else 'logits as they are'}",
                "value": round(spread.mean, 4),
            }
            for compensated, spread in scores
            if spread is not None
        ],
    }


_CARD = """---
{header}
---

# {title}

{method}, {model}, {num_classes} classes, trained on `{data}` with priorshift. Its logits carry a class
prior: {carried}. Take it out and put in that of your deployment:

```python
from priorshift import adjust
from priorshift.hub import load_pretrained

scorer = load_pretrained("{title}")  # this folder, or owner/name on the hub
logits = scorer({input_name})  # float32, [N, {shape}]; images between 0 and 1
logits = adjust(logits, carried=scorer.description.carried, target=[...])  # one mass per class
```

## Measured

{table}
## Training

`priorshift train training_config.json` trains it again.

{facts}
"""
