"""The example service: right answers, adaptation to its own traffic, and a state that outlives it."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from json import loads
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from priorshift import Prior
from priorshift.cli import main
from priorshift.export import Description, Scorer, export_onnx
from priorshift.models import Classifier, backbones, heads
from priorshift.streams import StreamingPrior

for package in ("onnxruntime", "onnxscript", "fastapi", "uvicorn", "httpx2"):
    pytest.importorskip(package, reason="the extras `export` and `serve` are not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.11 says it of itself

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "serve.py"
CARRIED = Prior([0.6, 0.3, 0.1])
MIX = np.array([0.1, 0.2, 0.7])
NAMES = ("cat", "dog", "horse")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The exact scorer of three Gaussians of unit variance, 2 along the axes, that carries `CARRIED`."""
    head = heads.LinearHead(3, 3)
    with torch.no_grad():
        nn.init.eye_(head.weight).mul_(2)
        head.bias.copy_(torch.tensor(CARRIED.log_probs))
    description = Description(
        class_names=NAMES,
        carried=CARRIED,
        carried_by="theory",
        train_counts=(60, 30, 10),
        input_shape=(3,),
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_onnx(Scorer(Classifier(backbones.Identity(3), head), description), path)
    return path


def traffic(size, mix=MIX, seed=0):
    """Samples of the Gaussians in a mix, and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, size, p=mix)
    return (2 * np.eye(3)[labels] + generator.normal(size=(size, 3))).astype("<f4"), labels


def posterior(inputs, mix):
    """Bayes' rule for the Gaussians, in float64."""
    distances = ((inputs[:, None].astype(np.float64) - 2 * np.eye(3)) ** 2).sum(axis=2)
    joint = np.exp(-distances / 2) * mix
    return joint / joint.sum(axis=1, keepdims=True)


@pytest.fixture
def start(model, tmp_path, monkeypatch):
    """A function that imports the example anew, as a service that starts."""

    def started(**settings):
        known = {"MODEL": model, "STATE": tmp_path / "state", "SECONDS": 0.02, "OMP_NUM_THREADS": 1}
        for name, value in {**known, **settings}.items():
            monkeypatch.setenv(name, str(value))
        spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return started


def client(service):
    from fastapi.testclient import TestClient

    return TestClient(service.app)


def wait_until(holds, seconds=20.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_answers_are_the_posterior_under_the_mix_known_so_far(start):
    service, (inputs, _) = start(SECONDS=1e6), traffic(50)
    with client(service) as calls:
        for size in (1, 2, 50):
            answer = calls.post("/predict", content=inputs[:size].tobytes()).json()
            exact = posterior(inputs[:size], CARRIED.probs)
            assert [entry["class"] for entry in answer] == [NAMES[k] for k in exact.argmax(axis=1)]
            said = [entry["probability"] for entry in answer]
            np.testing.assert_allclose(said, exact.max(axis=1), rtol=0, atol=1e-5)


def test_it_adapts_to_its_traffic_and_goes_on_after_a_restart(start, tmp_path):
    service, (inputs, _) = start(), traffic(2000)
    with client(service) as calls:
        for batch in np.array_split(inputs, 20):
            assert calls.post("/predict", content=batch.tobytes()).status_code == 200
        wait_until(lambda: calls.get("/mix").json()["images"] == 2000)
        mix = calls.get("/mix").json()["mix"]
        assert list(mix) == list(NAMES)
        np.testing.assert_allclose(list(mix.values()), MIX, atol=0.05)
        answer = calls.post("/predict", content=inputs[:200].tobytes()).json()
        exact = posterior(inputs[:200], np.array(list(mix.values())))
        np.testing.assert_allclose([each["probability"] for each in answer], exact.max(axis=1), atol=1e-4)
    again = start()  # what was still pending at the end was learnt
    assert StreamingPrior.load(tmp_path / "state").num_samples == 2200
    with client(again) as calls:
        state = calls.get("/mix").json()
        assert state["images"] == 2200
        np.testing.assert_allclose(list(state["mix"].values()), MIX, atol=0.05)


def test_adapted_answers_are_right_more_often(start):
    inputs, labels = traffic(4000)
    with client(start()) as calls:

        def accuracy():
            answer = calls.post("/predict", content=inputs.tobytes()).json()
            return np.mean([NAMES.index(each["class"]) for each in answer] == labels)

        before = accuracy()
        wait_until(lambda: calls.get("/mix").json()["images"] == 4000)
        best = np.mean(posterior(inputs, MIX).argmax(axis=1) == labels)
        assert before < best - 0.03
        assert accuracy() > best - 0.005


@pytest.mark.parametrize(
    "body", [b"", b"12345", np.zeros(4, "<f4").tobytes(), np.full(3, np.nan, "<f4").tobytes()]
)
def test_what_is_no_image_is_refused_and_teaches_nothing(start, body, tmp_path):
    with client(start()) as calls:
        assert calls.post("/predict", content=body).status_code == 422
    assert not (tmp_path / "state").exists()


def test_requests_are_answered_while_learning_fails(start, monkeypatch, caplog, tmp_path):
    service, (inputs, _) = start(), traffic(10)

    def full(path):
        raise OSError("disk full")

    monkeypatch.setattr(service.mix.stream, "save", full)
    with client(service) as calls:
        for count in (10, 20):
            assert calls.post("/predict", content=inputs.tobytes()).status_code == 200
            wait_until(lambda count=count: calls.get("/mix").json()["images"] == count)
    assert "disk full" in caplog.text


def test_a_state_of_another_model_is_refused(start, tmp_path):
    StreamingPrior([0.5, 0.3, 0.2]).save(tmp_path / "state")
    with pytest.raises(ValueError, match="is of another model"):
        start()


def test_the_verb_writes_the_example(tmp_path, capsys):
    path = tmp_path / "new" / "serve.py"
    for _ in range(2):
        assert main(["serve-example", "-o", str(path)]) == 0
        assert path.read_bytes() == EXAMPLE.read_bytes()
    path.write_text("mine")
    assert main(["serve-example", "-o", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err and path.read_text() == "mine"
    assert main(["serve-example", "-o", str(path), "--overwrite"]) == 0
    assert path.read_bytes() == EXAMPLE.read_bytes()


def test_the_wheel_takes_the_example_along():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["examples/serve.py"] == "priorshift/export/serve.py"


class Service:
    """The example as a process of its own."""

    def __init__(self, model, state):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {"MODEL": model, "STATE": state, "SECONDS": 0.2, "PORT": self.port}
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        self.process = subprocess.Popen([sys.executable, str(EXAMPLE)], env=environment)

    def __enter__(self):
        wait_until(self.answers, 60)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def call(self, path, body=None):
        address = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=10) as answer:
            return loads(answer.read())

    def answers(self):
        assert self.process.poll() is None
        try:
            return bool(self.call("/mix"))
        except urllib.error.URLError:
            return False

    def end(self, how):
        self.process.send_signal(how)
        return self.process.wait(20)


@pytest.mark.slow
def test_kill_9_loses_what_came_since_the_last_save_at_most(model, tmp_path):
    inputs, _ = traffic(1000)
    with Service(model, tmp_path / "state") as service:
        for batch in np.array_split(inputs, 50):
            service.call("/predict", batch.tobytes())
        wait_until(lambda: service.call("/mix")["images"] == 1000)
        wait_until((tmp_path / "state").is_file)
        time.sleep(1.0)  # several rounds, in which nothing new comes
        known = service.call("/mix")
        service.call("/predict", inputs[:5].tobytes())
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
    with Service(model, tmp_path / "state") as again:
        state = again.call("/mix")
        assert state["images"] in (1000, 1005)
        for name, share in known["mix"].items():
            assert state["mix"][name] == pytest.approx(share, abs=0.01)
        assert again.end(signal.SIGTERM) in (0, -signal.SIGTERM)
