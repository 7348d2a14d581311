"""The README does what it says: its Python runs in order, its commands exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from priorshift import Prior, recipes
from priorshift.cli import VERBS
from priorshift.recipes.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands():
    """The words of every call of the command line, in blocks and within sentences."""
    in_blocks = [part for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    lines = [*in_blocks, *re.findall(r"`(priorshift [^`]+)`", README)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [call[1:] for call in words if call[:1] == ["priorshift"]]


def test_every_python_block_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    namespace = {
        "logits": torch.randn(30, 3) + 2 * torch.eye(3)[labels] + torch.tensor([4.0, 2.0, 0.0]),
        "labels": labels,
        "images": torch.rand(30, 1, 8, 8),
        "model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
        "train_labels": [0] * 50 + [1] * 40 + [2] * 20,
        "traffic": torch.randn(40, 3),
        "held_out_logits": torch.randn(30, 3) + torch.eye(3)[labels],
        "held_out_labels": labels,
    }
    given = namespace["logits"]
    assert len(blocks("python")) == 7
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    carried = torch.tensor(namespace["train"].log_probs)
    expected = given.double() - carried + torch.tensor([0.1, 0.3, 0.6]).log()
    assert torch.equal(namespace["predicted"], expected.argmax(dim=1))
    adjusted = namespace["logits"].double().softmax(dim=1)
    torch.testing.assert_close(adjusted, expected.softmax(dim=1), atol=1e-5, rtol=1e-4)
    assert not torch.equal(namespace["predicted"], given.argmax(dim=1))
    assert namespace["model"][1].weight.grad.abs().sum() > 0
    assert namespace["loss"].carried_prior == Prior.uniform(3)
    assert namespace["adapted"].shape == (40, 3) and namespace["estimate"].scaling.num_samples == 30
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.safetensors"]


def test_there_are_commands_to_look_at():
    assert {"quickstart", "train", "predict", "evaluate", "report"} <= {call[0] for call in commands()}


@pytest.mark.parametrize("call", commands(), ids=" ".join)
def test_every_command_names_a_verb_and_a_recipe_that_exist(call):
    assert call[0] in VERBS
    known = {name.replace("_", "-") for name in recipes.__all__}
    if call[0] == "train":
        assert call[1] in known
    if "--method" in call:
        assert call[call.index("--method") + 1] in METHODS
    for run in re.findall(r"runs/([\w-]+)-seed\d", " ".join(call)):
        assert run in known | {f"{recipe}-{method}" for recipe in known for method in METHODS}


@pytest.mark.parametrize("call", commands(), ids=" ".join)
def test_every_option_of_a_command_is_one_of_its_verb(call, capsys):
    from priorshift.cli import main

    assert main([*call[: 2 if call[0] in ("train", "reproduce") else 1], "--help"]) == 0
    text = capsys.readouterr().out
    for option in (word for word in call if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), option


def test_the_extras_it_installs_exist():
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    asked = {name for group in re.findall(r'"\.\[([\w,]+)\]"', README) for name in group.split(",")}
    assert {"cli", "torch", "dev"} <= asked <= extras.keys()


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_every_page_it_points_to_exists(path):
    assert (ROOT / path).is_file()
