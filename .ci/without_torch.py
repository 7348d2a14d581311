"""What people with scores alone do, in an environment without torch: `size`, `readme` or `verbs`."""

import importlib.util
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

MOST_MEGABYTES = 200
ROOT = Path(__file__).parents[1]


def size():
    """Files that the packages bring, without the bytecode that pip makes of them."""
    megabytes = {}
    for package in distributions():
        files = [Path(package.locate_file(file)) for file in package.files or () if file.suffix != ".pyc"]
        megabytes[package.name] = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    brought = {name: size for name, size in megabytes.items() if name not in ("pip", "setuptools")}
    print(
        f"{sum(brought.values()):.0f} MB:", ", ".join(f"{name} {size:.1f}" for name, size in brought.items())
    )
    assert sum(brought.values()) <= MOST_MEGABYTES
    assert not {"torch", "triton"} & megabytes.keys()


def readme():
    """The snippets of the README that need scores alone."""
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    namespace = {
        "logits": rng.normal(size=(30, 3)) + 2 * np.eye(3)[labels] + [4.0, 2.0, 0.0],
        "labels": labels,
        "traffic": rng.normal(size=(40, 3)),
        "held_out_logits": rng.normal(size=(30, 3)) + np.eye(3)[labels],
        "held_out_labels": labels,
    }
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), flags=re.M | re.S)
    run = [block for block in blocks if "losses" not in block]
    assert {"from_frame", "PriorShiftClassifier", "estimate_prior", "adjust"} <= set(
        re.findall(r"\w+", " ".join(run))
    )
    with tempfile.TemporaryDirectory() as folder:
        for block in run:
            exec(block.replace('"predictions.safetensors"', f'"{folder}/p.safetensors"'), namespace)
    print(f"{len(run)} snippets ran; the estimate is {namespace['estimate'].prior}")


def verbs():
    """`adapt`, `estimate`, `evaluate` and `report`."""
    import numpy as np

    from priorshift import Predictions

    rng = np.random.default_rng(0)
    labels = rng.choice(3, size=400, p=[0.2, 0.3, 0.5])
    logits = rng.normal(size=(400, 3)) + 2 * np.eye(3)[labels] + np.log([0.7, 0.2, 0.1])
    with tempfile.TemporaryDirectory() as folder:
        predictions = Predictions(
            logits=logits, labels=labels, carried=[0.7, 0.2, 0.1], train_counts=[70, 20, 10], method="Softmax"
        )
        predictions.save(f"{folder}/p.safetensors")
        (Path(folder) / "test-run").mkdir()
        predictions.save(f"{folder}/test-run/predictions-test.safetensors")
        for command in (
            "adapt p.safetensors -o adapted.safetensors --report mix.html",
            "estimate p.safetensors",
            "evaluate p.safetensors --target uniform",
            "report test-run -o report.html",
        ):
            print("$ priorshift", command)
            program = Path(sys.executable).parent / "priorshift"
            subprocess.run([program, *command.split()], cwd=folder, check=True)
        assert (Path(folder) / "mix.html").stat().st_size > 1000
        assert (Path(folder) / "report.html").stat().st_size > 1000


if __name__ == "__main__":
    assert importlib.util.find_spec("torch") is None, "torch is installed here"
    {"size": size, "readme": readme, "verbs": verbs}[sys.argv[1]]()
