"""Exported scorers: ONNX and `torch.export` say what torch says, for any prior; folding costs nothing."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from priorshift import Predictions, Prior, recipes
from priorshift.adjustment import fit_scaling
from priorshift.cli import main
from priorshift.data import Preparation
from priorshift.export import (
    Description,
    Scorer,
    calibrate,
    export_onnx,
    export_torch,
    fold,
    load_scorer,
)
from priorshift.models import Classifier, backbones, heads
from priorshift.training import Part, predict, train
from priorshift.training.build import load_data

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

# torch 2.11 says this of itself.
OF_TORCH = ("ignore:.*LeafSpec:FutureWarning", "ignore:The given buffer is not writable:UserWarning")
pytestmark = [pytest.mark.filterwarnings(words) for words in OF_TORCH]

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
PREPARATION = Preparation(mean=(0.3,), std=(0.4,))
HEADS = [name for name in heads.__all__ if name.endswith("Head")]
LINEAR = ("BilateralHead", "LearnableScaleHead", "LinearHead", "PriorNormHead", "TauNormHead")
CARRIED = Prior([0.6, 0.3, 0.1])
NAMES = ("cat", "dog", "horse")


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns that the target prior is an input
    return onnxruntime.InferenceSession(path, options)


def posterior(logits, carried, target):
    """Bayes' rule in float64: the posterior under the carried prior, times t / q, normalised."""
    logits = np.asarray(logits, dtype=np.float64)
    joint = np.exp(logits - logits.max(axis=1, keepdims=True)) * np.asarray(target) / np.asarray(carried)
    return joint / joint.sum(axis=1, keepdims=True)


def randomised(module, seed=0):
    """The module with every number of its state drawn anew, none of them left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith(("running_var", "scale")) else -0.5
                tensor.uniform_(low, low + 1, generator=generator)
    return module


def scorer_of(classifier, shape=(4,), **more):
    description = Description(
        class_names=NAMES,
        carried=CARRIED,
        carried_by="theory",
        train_counts=(60, 30, 10),
        input_shape=shape,
        **more,
    )
    return Scorer(classifier, description)


def scorer_with(head):
    """A scorer of four features with a head of this name."""
    return scorer_of(randomised(Classifier(backbones.Identity(4), getattr(heads, head)(4, 3))))


def inputs_of(scorer, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, *scorer.description.input_shape, generator=generator)


def assert_served_as_defined(run, scorer, sizes=(1, 2, 7)):
    """Logits are torch's; probabilities are the posterior under whatever target is given."""
    for size in sizes:
        inputs = inputs_of(scorer, size)
        wanted = scorer(inputs).numpy()
        for target in ([1, 1, 1], [0.1, 0.2, 0.7], [0.5, 0, 0.5]):
            with np.errstate(divide="ignore"):
                log_target = np.log(np.array(target, dtype=np.float32))  # up to a constant
            probabilities, logits = run(inputs, log_target)
            np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
            exact = posterior(wanted, CARRIED.probs, target)
            np.testing.assert_allclose(probabilities, exact, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config = recipes.digits_softmax()
    config = replace(
        config,
        stages=(replace(config.stages[0], epochs=1),),
        model=Part(name="small-cnn", options={"width": 4}),
        preparation=PREPARATION,
        device="cpu",
    )
    train(config, folder)
    predict(folder, "validation", device="cpu").save(folder / "predictions-validation.safetensors")
    return folder


@pytest.fixture(scope="module")
def images():
    data = load_data(recipes.digits_softmax().data).test
    return data.images.float() / 16


@pytest.fixture(scope="module")
def served(run):
    """What the command line writes: target prior an input, uniform by default."""
    path = run / "digits.onnx"
    assert main(["export", str(run), "-o", str(path), "--target", "uniform"]) == 0
    return session(path)


# ONNX


def test_a_scorer_says_of_pixels_between_0_and_1_what_its_run_predicts(run, images):
    np.testing.assert_allclose(load_scorer(run)(images), predict(run).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_onnx_agrees_with_the_run_for_any_batch_and_prior(run, images, served, size):
    predictions = predict(run)
    logits, carried = predictions.logits[:size].astype(np.float64), predictions.carried.probs
    batch = {"images": images[:size].numpy()}
    random = np.random.default_rng(size).dirichlet(np.ones(10))
    absent = np.where(np.arange(10) < 3, 0.0, 1.0)
    for target in (random, 5 * random, absent):
        with np.errstate(divide="ignore"):
            log_target = np.log(target).astype(np.float32)
        probabilities, said = served.run(None, {**batch, "log_target_prior": log_target})
        np.testing.assert_allclose(said, logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(probabilities, posterior(logits, carried, target), rtol=0, atol=1e-5)
    assert (probabilities[:, :3] == 0).all()


def test_the_target_prior_is_optional_and_its_default_is_what_was_asked_for(run, images, served):
    predictions = predict(run)
    assert [entry.name for entry in served.get_inputs()] == ["images"]
    assert [entry.name for entry in served.get_overridable_initializers()] == ["log_target_prior"]
    assert [entry.name for entry in served.get_outputs()] == ["probabilities", "logits"]
    probabilities, logits = served.run(None, {"images": images.numpy()})
    exact = posterior(predictions.logits, predictions.carried.probs, np.full(10, 0.1))
    np.testing.assert_allclose(probabilities, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, predictions.logits, rtol=0, atol=1e-5)


def test_the_metadata_says_what_whoever_serves_it_has_to_know(run, served):
    meta = served.get_modelmeta()
    about = json.loads(meta.custom_metadata_map["priorshift"])
    predictions = predict(run)
    assert about["class_names"] == [str(digit) for digit in range(10)]
    assert about["carried"] == predictions.carried.probs.tolist() == about["source"]
    assert about["carried_by"] == "theory"
    assert about["train_counts"] == predictions.train_counts.tolist()
    assert about["target"] == [0.1] * 10
    assert about["preparation"] == {"size": 0, "resize": 0, "mean": [0.3], "std": [0.4]}
    assert about["input_shape"] == [1, 8, 8] and about["white"] == 16
    assert about["versions"]["torch"] == torch.__version__
    assert meta.producer_name == "priorshift"
    assert Description.from_json(about) == load_scorer(run).description


@pytest.mark.slow
def test_without_a_target_the_default_is_what_the_logits_carry(tmp_path):
    scorer = scorer_with("LinearHead")
    export_onnx(scorer, tmp_path / "model.onnx")
    inputs = inputs_of(scorer, 3)
    probabilities, logits = session(tmp_path / "model.onnx").run(None, {"features": inputs.numpy()})
    np.testing.assert_allclose(probabilities, torch.tensor(logits).softmax(dim=1), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_onnx_and_torch_export_take_every_head(head, tmp_path):
    scorer = scorer_with(head)
    export_onnx(scorer, tmp_path / "model.onnx")
    runtime = session(tmp_path / "model.onnx")
    assert_served_as_defined(
        lambda inputs, log_target: runtime.run(
            None, {"features": inputs.numpy(), "log_target_prior": log_target}
        ),
        scorer,
    )
    export_torch(scorer, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert_served_as_defined(
        lambda inputs, log_target: [each.numpy() for each in program(inputs, torch.from_numpy(log_target))],
        scorer,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        (lambda: backbones.SmallCNN(1, width=4), (1, 8, 8)),
        (lambda: backbones.SmallCNN(3, width=4, branches=2, attention=True), (3, 8, 8)),
        (lambda: backbones.StridedCNN(3, width=4), (3, 16, 16)),
        (lambda: backbones.Resnet32(3, attention=True), (3, 16, 16)),
        (lambda: backbones.Resnet32BBN(3), (3, 16, 16)),
        (lambda: backbones.Timm(3, architecture="test_resnet"), (3, 32, 32)),
        (lambda: backbones.Timm(3, architecture="test_vit"), (3, 160, 160)),
        (lambda: backbones.Timm(3, architecture="test_convnext"), (3, 32, 32)),
    ],
)
def test_onnx_takes_every_backbone(backbone, shape, tmp_path):
    torch.manual_seed(0)
    network = backbone()
    preparation = Preparation(mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    classifier = Classifier(network, heads.LinearHead(network.num_features, 3))
    scorer = scorer_of(classifier, shape, preparation=preparation)
    export_onnx(scorer, tmp_path / "model.onnx")
    runtime = session(tmp_path / "model.onnx")
    assert_served_as_defined(
        lambda inputs, log_target: runtime.run(
            None, {"images": inputs.numpy(), "log_target_prior": log_target}
        ),
        scorer,
    )


def test_every_backbone_of_the_library_is_in_that_list():
    source = Path(__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"lambda: backbones\.(\w+)", source)) == set(backbones.__all__) - {"Identity"}


class Determinant(nn.Module):
    def forward(self, inputs):
        return inputs[:, :3] * torch.linalg.svdvals(inputs[:, :, None] * inputs[:, None]).sum()


@pytest.mark.slow
def test_what_onnx_has_no_operator_for_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="cannot be exported to ONNX"):
        export_onnx(scorer_of(Determinant()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_default_target_needs_the_input_and_the_input_a_positive_prior(tmp_path):
    scorer = scorer_with("LinearHead")
    with pytest.raises(ValueError, match="no `target` without `prior_input`"):
        export_onnx(scorer, tmp_path / "m.onnx", target=[1, 1, 1], prior_input=False)
    with pytest.raises(ValueError, match="`target` with one entry per class, 3, but got 2"):
        export_onnx(scorer, tmp_path / "m.onnx", target=[1, 1])
    for export in (export_onnx, export_torch):
        with pytest.raises(ValueError, match="`carried` to be strictly positive"):
            export(fold(scorer, [1, 0, 1]), tmp_path / "m")
    assert not list(tmp_path.iterdir())


# Folding


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target", [[0.1, 0.2, 0.7], [0.5, 0.0, 0.5]])
def test_a_folded_scorer_is_for_its_target(head, target):
    scorer = scorer_with(head)
    inputs = inputs_of(scorer, 20)
    before = scorer(inputs)
    folded = fold(scorer, target)
    exact = posterior(before, CARRIED.probs, target)
    np.testing.assert_allclose(folded(inputs).softmax(dim=1), exact, rtol=0, atol=1e-6)
    assert folded.description.carried == Prior(target, names=NAMES)
    assert scorer.description.carried == CARRIED.named(NAMES)
    torch.testing.assert_close(scorer(inputs), before, rtol=0, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_folding_adds_an_operation_only_where_the_head_is_not_linear(head):
    folded = fold(scorer_with(head), [0.1, 0.2, 0.7]).classifier
    linear = isinstance(folded, Classifier) and type(folded.head) is heads.LinearHead
    assert linear == (head in LINEAR)


def test_folding_leaves_the_weights_as_they_are_to_the_bit():
    scorer = scorer_with("TauNormHead")  # has no bias: one is added
    folded = fold(scorer, [0.1, 0.2, 0.7])
    assert torch.equal(folded.classifier.head.weight, scorer.classifier.head.weight)
    expected = torch.tensor([0.1 / 0.6, 0.2 / 0.3, 0.7 / 0.1]).log()
    torch.testing.assert_close(folded.classifier.head.bias.data, expected)


def test_folding_to_what_is_carried_changes_nothing():
    scorer = scorer_with("LinearHead")
    inputs = inputs_of(scorer, 5)
    assert torch.equal(fold(scorer, CARRIED)(inputs), scorer(inputs))


@pytest.mark.parametrize("carried", [CARRIED, None])
@pytest.mark.parametrize("method", ["ts", "bcts", "vs", "nbvs"])
@pytest.mark.parametrize("head", ["LinearHead", "BilateralHead", "CosineHead"])
def test_a_calibrated_scorer_is_the_calibration_of_the_scorer(head, method, carried):
    scorer = scorer_with(head)
    inputs = inputs_of(scorer, 60)
    labels = torch.arange(60) % 3
    scaling = fit_scaling(scorer(inputs), labels, method=method, carried=carried)
    calibrated = calibrate(scorer, scaling)
    expected = scaling(scorer(inputs))
    torch.testing.assert_close(calibrated(inputs), expected, rtol=1e-4, atol=1e-5)
    assert calibrated.description.carried == scaling.carried.named(NAMES)
    assert calibrated.description.facts["calibration"] == method
    exact = posterior(expected, scaling.carried.probs, [0.1, 0.2, 0.7])
    both = fold(calibrated, [0.1, 0.2, 0.7])
    np.testing.assert_allclose(both(inputs).softmax(dim=1), exact, rtol=0, atol=1e-5)


def test_a_calibration_of_another_scorer_is_refused():
    scorer = scorer_with("LinearHead")
    logits, labels = scorer(inputs_of(scorer, 60)), torch.arange(60) % 3
    with pytest.raises(ValueError, match="whose logits carry Prior"):
        calibrate(scorer, fit_scaling(logits, labels, carried=[1, 1, 1]))
    with pytest.raises(ValueError, match="`scaling` with one entry per class, 3, but got 2"):
        calibrate(scorer, fit_scaling(logits[:, :2], labels % 2))


# The description


def test_a_description_survives_json_and_a_newer_one_is_refused():
    description = scorer_with("LinearHead").description
    content = json.loads(json.dumps(description.to_json()))
    assert Description.from_json(content) == description
    with pytest.raises(ValueError, match="newer priorshift"):
        Description.from_json({**content, "schema_version": 99})
    with pytest.raises(ValueError, match="`carried` with one entry per class, 3, but got 2"):
        replace(description, carried=Prior([0.5, 0.5]))
    with pytest.raises(ValueError, match="`train_counts` with one entry per class, 3, but got 1"):
        replace(description, train_counts=(5,))


# The command line


def test_the_command_line_folds_and_calibrates_as_torch_export(run, images, tmp_path, capsys):
    path = tmp_path / "new" / "model.pt2"
    validation = run / "predictions-validation.safetensors"
    words = [
        "--format",
        "torch-export",
        "--fold",
        "uniform",
        "--validation",
        str(validation),
        "-o",
        str(path),
    ]
    assert main(["export", str(run), *words]) == 0
    said = capsys.readouterr().out
    assert "images, float32 [N, 1, 8, 8] between 0 and 1" in said and "log_target_prior" not in said
    held_out = Predictions.load(validation)
    scaling = fit_scaling(held_out.logits, held_out.labels, carried=held_out.carried)
    expected = posterior(scaling(predict(run).logits), scaling.carried.probs, np.full(10, 0.1))
    extra = {"priorshift.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for size in (1, 9):
        probabilities, logits = program(images[:size])
        np.testing.assert_allclose(probabilities, expected[:size], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits.softmax(dim=1), probabilities)
    about = json.loads(extra["priorshift.json"])
    assert about["carried"] == about["target"] == [0.1] * 10
    assert about["facts"]["calibration"] == "bcts"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--target", "uniform", "--fold", "uniform"], "`--target`"),
        (["--target", "uniform", "--format", "torch-export"], "`--target`"),
        (["--calibration", "ts"], "`--validation`"),
        (["--fold", "sideways"], "Cannot read the target prior 'sideways'"),
        (["--validation", "nowhere.safetensors"], "no predictions file nowhere.safetensors"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(run, words, sentence, capsys):
    assert main(["export", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_validation_predictions_of_another_run_are_refused(run, tmp_path, capsys):
    other = replace(predict(run, "validation"), carried=Prior.uniform(10))
    other.save(tmp_path / "other.safetensors")
    assert main(["export", str(run), "--validation", str(tmp_path / "other.safetensors")]) == 2
    assert "another carried prior" in capsys.readouterr().err
    replace(other, labels=None).save(tmp_path / "bare.safetensors")
    assert main(["export", str(run), "--validation", str(tmp_path / "bare.safetensors")]) == 2
    assert "has none" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(run), "-o", str(run / "never.onnx")]) == 2
    error = capsys.readouterr().err
    assert "needs onnx, which is not installed" in error and "[export]" in error
    assert not (run / "never.onnx").exists()


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_the_python_of_the_page_runs(run, images, served, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes((run / "digits.onnx").read_bytes())
    namespace = {"images": images[:4].numpy(), "run": run}
    exec(compile(blocks[0], "docs/export.md, block 0", "exec"), namespace)
    assert namespace["probabilities"].shape == (4, 10)
    namespace["folder"] = tmp_path / "model"
    exec(compile(blocks[1], "docs/export.md, block 1", "exec"), namespace)
    np.testing.assert_allclose(namespace["scorer"](images), predict(run).logits, rtol=1e-5, atol=1e-5)
