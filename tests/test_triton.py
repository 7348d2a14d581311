"""The Triton kernels give the sums and the gradient of their definition, in NumPy and float64.

Without a GPU they run in Triton's interpreter, in a process of its own: it is chosen when Triton is imported.
"""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch

import references
from priorshift import Prior
from priorshift.kernels import _fused
from priorshift.losses import lade_loss, logit_adjusted_cross_entropy

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

FLOAT32 = torch.float32
LOSS_OPTIONS = [{"alpha": 0.7, "lam": 0.3, "variant": variant} for variant in ("paper", "released")]


SUMS = ("surprise", "own", "column", "gradient")


def make(n, c, *, dtype=FLOAT32, scale=3.0, ignored=0.2, columns=True, seed=0):
    """Scores, vectors and the derivatives by the results, as `statistics` and `gradient` take them."""
    generator = torch.Generator().manual_seed(seed)
    counted = torch.rand(n, generator=generator) >= ignored if ignored else None
    live = torch.ones(n, dtype=torch.bool) if counted is None else counted
    return {
        "scores": (scale * torch.randn(n, c, generator=generator)).to(dtype),
        "label": torch.randint((c + 1) // 2, (n,), generator=generator) * live,
        "counted": counted,
        "log_prior": torch.rand(c, generator=generator).add(0.01).log(),
        "log_weight": torch.randn(n, generator=generator) if columns else None,
        "by_surprise": torch.rand(n, generator=generator) * live,
        "by_own": torch.randn(n, generator=generator) * live if columns else None,
        "by_column": torch.randn(c, generator=generator) if columns else None,
    }


def changed(case, **tensors):
    return case | tensors


def cases():
    """What is special → a batch."""
    made = {
        f"{n} x {c} {str(dtype).removeprefix('torch.')}": make(n, c, dtype=dtype)
        for n, c in ((252, 507), (3, 2))
        for dtype in (FLOAT32, torch.bfloat16, torch.float16)
    }
    made |= {f"{n} x {c}": make(n, c, ignored=0) for n, c in ((1, 100_003), (130, 1), (65, 129), (1, 1))}
    made["rows alone"] = make(70, 300, columns=False)
    made["every row counts, rows alone"] = make(70, 300, columns=False, ignored=0)
    made["nothing counts"] = changed(make(70, 300), counted=torch.zeros(70, dtype=torch.bool))
    for name in ("by_surprise", "by_own", "by_column", "label"):
        made["nothing counts"][name] = made["nothing counts"][name] * 0

    special = made["ignored rows of anything"] = make(70, 300, ignored=0.5)
    special["scores"][~special["counted"]] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(100)

    special = made["minus infinity"] = make(70, 300)
    special["scores"][special["scores"] < -1.5] = -torch.inf
    special["scores"][:, 299] = -torch.inf
    special["scores"][:, 0], special["by_column"][299], special["label"] = 1.0, 0.0, special["label"] * 0

    special = made["absent classes"] = make(70, 300, ignored=0)
    special["by_column"][special["label"].bincount(minlength=300) == 0] = 0.0

    special = made["scales far apart"] = make(200, 300, scale=30.0)
    special["scores"][:, ::7] -= 500.0
    special["scores"][::3] += 700.0

    strided = make(70, 300)
    made["transposed"] = changed(strided, scores=strided["scores"].T.contiguous().T)
    made["every other score"] = changed(strided, scores=strided["scores"].repeat_interleave(2, 1)[:, ::2])
    made["one row for all"] = changed(strided, scores=strided["scores"][:1].expand(70, 300))
    made["strided vectors"] = strided | {
        name: strided[name].repeat_interleave(2)[::2]
        for name in ("log_prior", "by_surprise", "by_own", "by_column")
    }
    return made


def compute(case, device):
    """What the kernels make of a case: sums, then the gradient. New buffers of this mode hold NaN."""
    from priorshift.kernels import _triton

    here = {name: tensor if tensor is None else _to(tensor, device) for name, tensor in case.items()}
    slopes = [here.pop(name) for name in ("by_surprise", "by_own", "by_column")]
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        surprise, own, column, saved = _triton.statistics(**here)
        gradient = _triton.gradient(*here.values(), saved, *slopes)
    finally:
        torch.set_deterministic_debug_mode(before)
    return [None if tensor is None else tensor.cpu() for tensor in (surprise, own, column, gradient)]


def _to(tensor, device):
    """A copy elsewhere with the same strides."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    whole = tensor.as_strided((size,), (1,)).to(device)
    return whole.as_strided(tensor.shape, tensor.stride())


def expected(case):
    """The definition, row by row and column by column."""
    wide = {name: None if t is None else t.double().numpy() for name, t in case.items()}
    n, c = case["scores"].shape
    live = np.ones(n, dtype=bool) if case["counted"] is None else case["counted"].numpy()
    scores, label = wide["scores"], case["label"].numpy()
    surprise, own, gradient = np.zeros(n), np.zeros(n), np.zeros((n, c))
    for i in np.flatnonzero(live):
        shifted = scores[i] + wide["log_prior"]
        row = np.logaddexp.reduce(shifted)
        surprise[i], own[i] = row - shifted[label[i]], scores[i, label[i]]
        gradient[i] = wide["by_surprise"][i] * np.exp(shifted - row)
        gradient[i, label[i]] -= wide["by_surprise"][i]
        if wide["by_own"] is not None:
            gradient[i, label[i]] += wide["by_own"][i]
    if wide["log_weight"] is None:
        return surprise, own, None, gradient
    weighted = scores[live] + wide["log_weight"][live, None]
    column = np.logaddexp.reduce(weighted, axis=0, initial=-np.inf)
    some = column > -np.inf
    share = np.exp(weighted[:, some] - column[some])
    gradient[np.ix_(live, some)] += wide["by_column"][some] * share
    return surprise, own, column, gradient


def losses_of(device):
    """Loss and gradient through the public functions, with the kernels as their backend."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(40, 30, generator=generator)).to(device).requires_grad_()
    labels = torch.randint(15, (40,), generator=generator)
    labels[:3] = -100
    prior = Prior.from_counts(torch.arange(1, 31) ** 2)
    for options in LOSS_OPTIONS:
        loss = lade_loss(logits, labels.to(device), torch.tensor(prior.log_probs).to(device), **options)
        yield loss.item(), torch.autograd.grad(loss, logits)[0].cpu()
    loss = logit_adjusted_cross_entropy(
        logits, labels.to(device), torch.tensor(prior.log_probs).to(device), tau=0.5
    )
    yield loss.item(), torch.autograd.grad(loss, logits)[0].cpu()


def in_interpreter(file):
    """What the child process does."""
    from priorshift.kernels import _triton

    torch.set_num_threads(1)
    np.seterr(all="ignore")
    found = {name: compute(case, "cpu") for name, case in cases().items()}
    _fused._backends, _fused._numba = lambda: {"cpu": _triton}, lambda: None
    torch.save({"cases": found, "losses": list(losses_of("cpu"))}, file)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    file = tmp_path_factory.mktemp("triton") / "found.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(file)], env=environment, capture_output=True, text=True
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip(f"the interpreter of Triton {metadata.version('triton')} fails with this NumPy")
    assert done.returncode == 0, done.stderr
    return torch.load(file)


def check(name, case, found):
    rounding = 2.0**-23 * (1 + case["scores"].nan_to_num(0, 0, 0).abs().max().item())
    for what, value, true in zip(
        ("surprise", "own", "column", "gradient"), found, expected(case), strict=True
    ):
        if true is None:
            assert value is None
            continue
        counts = np.isfinite(true) if what == "column" else np.ones(true.shape, dtype=bool)
        own_rounding = torch.finfo(value.dtype).eps if what == "gradient" else 0.0
        difference = np.abs(value.double().numpy() - true)[counts]
        allowed = (4 * rounding + own_rounding) * (1 + np.abs(true[counts]))
        assert (difference <= allowed).all(), f"{name}: {what} is off by {difference.max():.3g}"
        if what == "column":
            assert (value.numpy()[~counts] < -1e37).all(), f"{name}: an empty column has a sum"


@pytest.mark.parametrize("name", cases())
def test_sums_and_gradient_follow_their_definition(interpreted, name):
    check(name, cases()[name], interpreted["cases"][name])


def test_what_does_not_count_has_exactly_no_gradient(interpreted):
    for name, case in cases().items():
        if case["counted"] is not None:
            surprise, own, _, gradient = interpreted["cases"][name]
            for tensor in (surprise, own, gradient):
                assert (tensor[~case["counted"]] == 0).all(), name


def check_losses(found):
    logits = (3 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    torch.randn(40, 30, generator=generator)
    labels = torch.randint(15, (40,), generator=generator)
    labels[:3] = -100
    prior = Prior.from_counts(torch.arange(1, 31) ** 2)
    arrays = (logits.detach().numpy(), labels.numpy(), prior.probs)
    values = [references.lade(*arrays, **options) for options in LOSS_OPTIONS]
    values.append(references.logit_adjusted(*arrays, tau=0.5))
    losses = [lade_loss(logits, labels, torch.tensor(prior.log_probs), **options) for options in LOSS_OPTIONS]
    losses.append(logit_adjusted_cross_entropy(logits, labels, torch.tensor(prior.log_probs), tau=0.5))
    for (value, gradient), true_value, loss in zip(found, values, losses, strict=True):
        assert value == pytest.approx(true_value, rel=2e-6)
        true_gradient = torch.autograd.grad(loss, logits)[0]
        np.testing.assert_allclose(gradient, true_gradient, rtol=1e-5, atol=1e-7)


def test_the_losses_are_those_of_their_formulas(interpreted):
    check_losses(interpreted["losses"])


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("name", cases())
    def test_sums_and_gradient_follow_their_definition(self, name):
        check(name, cases()[name], compute(cases()[name], "cuda"))

    def test_every_run_gives_the_same_bits(self):
        case = make(1000, 8142, dtype=torch.bfloat16)
        first, second = compute(case, "cuda"), compute(case, "cuda")
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)

    def test_the_losses_are_those_of_their_formulas(self):
        assert "cuda" in _fused._backends()
        check_losses(losses_of("cuda"))

    def test_offsets_beyond_32_bits_are_right(self):
        """5 GiB of logits; the last row is more than 2^31 logits in."""
        case = make(2200, 1_000_003, dtype=torch.bfloat16, scale=1.0)
        surprise, own, _, gradient = compute(case, "cuda")
        of_rows = ("scores", "label", "counted", "by_surprise")
        last = make(1, 2, columns=False) | {name: case[name][-1:] for name in of_rows}
        true_surprise, true_own, _, _ = expected(last | {"log_prior": case["log_prior"]})
        assert surprise[-1].item() == pytest.approx(true_surprise.item(), rel=1e-5)
        assert own[-1].item() == true_own.item()
        assert gradient[-1].isfinite().all() and (gradient[-1] != 0).any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("columns", [True, False], ids=["columns", "rows alone"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(dtype, capability, columns):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from priorshift.kernels import _triton

    integers = {"rows": "i32", "count": "i32", "classes": "i32", "row_stride": "i32"}
    others = {"scores": dtype, "result": dtype, "label": "*i64", "counted": "*u8"}
    of_columns = {} if columns else dict.fromkeys(("log_weight", "column", "by_own", "by_column"))
    size = {"classes": 8142, "row_stride": 8142, "class_stride": 1, "tile_rows": 32, "tile_classes": 128}
    finish = {"class_stride": 1, "step": 64, "width": 32}
    for kernel, constants in (
        (_triton._sweep, size | of_columns),
        (_triton._finish_rows, finish),
        (_triton._finish_columns, finish),
        (_triton._write_gradient, size | of_columns),
    ):
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {
            name: "constexpr" if name in constants else (integers | others).get(name, "*fp32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"], kernel


if __name__ == "__main__":
    in_interpreter(sys.argv[1])
