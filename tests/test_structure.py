"""The layout: imports point one way, stubs and packages agree, what users see is documented."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

import priorshift
from priorshift._lazy import attach

SOURCE = Path(priorshift.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.pyi"))

GROUND = {"_inputs", "_kinds", "_blocks"}
"""What reads arguments and works on rows in blocks."""
FORMS = GROUND | {"_files", "priors"}
READING = FORMS | {"adjustment", "metrics", "shift", "predictions", "estimation", "streams", "evaluation"}
"""The array wing, which reads scores."""
MAKING = READING | {"data", "models"}
MAY_IMPORT = {
    "_lazy": set(),
    "_kinds": set(),
    "_blocks": set(),
    "_inputs": {"_kinds"},
    "_files": {"_kinds"},
    "priors": GROUND,
    "adjustment": GROUND | {"priors"},
    "metrics": GROUND | {"priors"},
    "shift": GROUND | {"priors"},
    "predictions": FORMS | {"adjustment"},
    "estimation": FORMS | {"adjustment"},
    "streams": FORMS | {"adjustment", "predictions", "estimation"},
    "evaluation": READING - {"streams", "_files"},
    "sklearn": FORMS | {"adjustment", "estimation"},
    "report": READING,
    "kernels": {"priors"},
    "losses": GROUND | {"priors", "kernels"},
    "published": set(),
    "data": FORMS | {"adjustment", "shift", "metrics"},
    "models": {"_inputs", "priors", "adjustment"},
    "training": MAKING | {"losses"},
    "recipes": MAKING | {"training"},
    "reproduce": MAKING | {"losses", "training", "recipes", "report", "published"},
    "export": MAKING | {"training"},
    "hub": MAKING | {"training", "report", "export"},
    "commands": MAKING | {"training", "recipes", "report", "reproduce", "published", "export"},
    "cli": {"commands"},
}
"""Room → the other rooms that it may import. Nobody may import `cli`, nor anybody but it `commands`."""
ARRAY_WING = READING | {"sklearn", "report"}
READING_VERBS = {
    "adapt",
    "estimate",
    "evaluate",
    "report",
    "figure",
    "_choices",
    "_mix_table",
    "_target_priors",
}
"""Modules of `commands` that must do without torch."""
READ_BY_FIGURES = {"training"}
"""What figures of the papers read of a run, its config, which needs no torch."""
MOST_LINES = 400
MOST_LINES_OF_READERS = 300
MOST_IMPORTS_DEEP = 5


def room_of(path):
    """The room that a file is in: `losses/_lade.py` → `losses`, `priors.py` → `priors`."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_modules(path):
    """Absolute names of all modules that a file imports, wherever in it."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            modules += (
                [f"priorshift.{alias.name}" for alias in node.names]
                if node.module == "priorshift"
                else [node.module]
            )
    return modules


def imported_rooms(path):
    modules = [module.split(".") for module in imported_modules(path)]
    return {parts[1] for parts in modules if parts[0] == "priorshift" and len(parts) > 1}


def python(code):
    """Run code in a fresh interpreter and give what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def loaded_after(code, *modules):
    return python(f"{code}\nimport sys\nprint([m for m in {modules!r} if m in sys.modules])")


# Who may know whom


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        assert imported_rooms(path) == {"_lazy"}
        return
    others = imported_rooms(path) - {room, "__version__"}
    allowed = MAY_IMPORT[room] | ({"_lazy"} if path.name == "__init__.py" else set())
    if "report/papers" in path.as_posix():
        allowed = allowed | READ_BY_FIGURES
    assert others <= allowed, f"{room} may not import {sorted(others - allowed)}"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if room_of(path) in ARRAY_WING or (room_of(path) == "commands" and path.stem in READING_VERBS)
    ],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_nothing_of_the_array_wing_imports_torch(path):
    third_parties = {module.split(".")[0] for module in imported_modules(path)}
    assert not third_parties & {"torch", "torchvision", "timm"}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES or f"Over {MOST_LINES} lines" in lines[0], "say why in the first line"


def test_the_core_needs_what_a_core_install_brings():
    core = {"numpy", "scipy", "jaxtyping", "safetensors", "priorshift"}
    torch = core | {"torch"}
    extras = {
        "_kinds": core | {"narwhals", "array_api_compat", "pyarrow"},
        "kernels": torch | {"triton", "numba", "llvmlite"},  # the first comes with torch where there are GPUs
        "losses": torch,
        "sklearn": core | {"sklearn"},
        "data": torch | {"sklearn", "PIL", "datasets", "torchvision", "pyarrow"},
        "models": torch | {"timm"},
        "training": torch,
        "streams": core | {"pyarrow", "distributed"},
        "report": core | {"matplotlib", "jinja2", "markupsafe", "rich"},
        "reproduce": torch | {"matplotlib"},
        "export": torch | {"onnx", "onnxscript"},
        "hub": torch | {"huggingface_hub"},
        "commands": torch | {"tyro", "rich", "filelock"},
        "cli": {"tyro", "priorshift"},
    }
    for path in FILES:
        needed = {module.split(".")[0] for module in imported_modules(path)} - set(sys.stdlib_module_names)
        assert needed <= extras.get(room_of(path), core), path


def test_arguments_are_read_in_one_short_file():
    lines = (SOURCE / "_inputs.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES_OF_READERS


def test_estimation_is_few_imports_deep():
    """The longest chain of imports within the room."""
    inside = {
        f"priorshift.estimation.{path.stem}": imported_modules(path)
        for path in (SOURCE / "estimation").glob("_*.py")
        if path.name != "__init__.py"
    }

    def depth(module):
        return max((1 + depth(other) for other in inside[module] if other in inside), default=0)

    assert max(map(depth, inside)) <= MOST_IMPORTS_DEEP


def test_there_is_no_room_for_odds_and_ends():
    names = {path.stem for path in FILES} | {path.name for path in PACKAGES}
    assert not names & {"utils", "_utils", "util", "helpers", "common", "misc"}


# What an import loads


def test_importing_the_package_or_a_recipe_loads_no_torch():
    heavy = ("torch", "numpy", "matplotlib", "jinja2", "rich", "tyro", "sklearn")
    assert loaded_after("import priorshift", *heavy) == "[]"
    assert loaded_after("from priorshift import recipes; recipes.digits_lade()", *heavy) == "[]"
    every_method = (
        "from priorshift import recipes\n"
        "from priorshift.recipes.methods import METHODS, with_method\n"
        "assert all(with_method(recipes.digits_softmax(), name).stages for name in METHODS)"
    )
    assert loaded_after(every_method, *heavy) == "[]"


def test_reading_scores_loads_no_torch_plotting_command_line_or_table_library():
    code = (
        "import numpy as np\n"
        "from priorshift import Predictions, Prior, adjust\n"
        "import priorshift.evaluation, priorshift.streams, priorshift.metrics\n"
        "from priorshift.estimation import estimate_prior\n"
        "logits = np.random.default_rng(0).normal(size=(50, 3))\n"
        "predictions = Predictions(logits=logits, labels=np.arange(50) % 3, carried=[0.5, 0.3, 0.2])\n"
        "estimate_prior(predictions).adapt(logits)\n"
        "priorshift.evaluation.evaluate(predictions, [0.2, 0.3, 0.5])"
    )
    extras = ("torch", "matplotlib", "jinja2", "rich", "tyro", "sklearn", "pandas", "polars")
    extras += ("PIL", "datasets", "torchvision", "timm", "pyarrow", "narwhals", "array_api_compat")
    assert loaded_after(code, *extras) == "[]"


def test_training_loads_no_plotting_command_line_or_data_set_library():
    code = "import priorshift.training.loop, priorshift.losses\npriorshift.losses.LADELoss"
    extras = ("matplotlib", "jinja2", "rich", "tyro", "sklearn", "pandas")
    extras += ("PIL", "datasets", "torchvision", "timm", "pyarrow")
    assert loaded_after(code, *extras) == "[]"


def test_help_answers_quickly_without_torch():
    code = "import sys\nfrom priorshift.cli import main\nassert main(['--help']) == 0\n"
    assert python(code + "print([m for m in ('torch', 'numpy', 'tyro') if m in sys.modules])").endswith("[]")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        python("from priorshift.cli import main; main(['--help'])")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.4


# Names


def name_of(package):
    """The dotted name of a package's folder."""
    return ".".join(("priorshift", *package.relative_to(SOURCE).parts))


def stub_of(package):
    """The import lines of a package's stub."""
    tree = ast.parse((package / "__init__.pyi").read_text(encoding="utf-8"))
    return [line for line in tree.body if isinstance(line, ast.ImportFrom)]


MODULES = ("priorshift.hub", "priorshift.predictions", "priorshift.priors")
"""Public modules that are no packages: their public names are in their `__all__`."""
PUBLIC = [
    (name_of(package), alias.name)
    for package in PACKAGES
    for line in stub_of(package)
    for alias in line.names
] + [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]


def test_every_module_is_public_or_says_by_its_name_that_it_is_not():
    """Public modules are packages with a stub, or listed in `MODULES`."""
    rooms = {room for room in MAY_IMPORT if not room.startswith("_")}
    packages = {package.name for package in PACKAGES if package.parent == SOURCE}
    single = {path.stem for path in SOURCE.glob("*.py") if not path.name.startswith("_")}
    assert packages | single == rooms - {"commands"} | {"cli"}
    assert single - {"cli"} == {module.rpartition(".")[2] for module in MODULES}


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_stub_and_its_package_agree(package):
    module = importlib.import_module(name_of(package))
    aliases = [alias for line in stub_of(package) for alias in line.names]
    assert all(alias.asname == alias.name for alias in aliases)
    assert sorted(alias.name for alias in aliases) == module.__all__ == dir(module)


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_name_of_a_stub_exists_is_documented_and_typed(package, name):
    thing = getattr(importlib.import_module(package), name)
    if not callable(thing):
        assert name.isupper()
        return
    if get_origin(thing) is not None:  # an alias of a type, which its module documents
        return
    assert inspect.getdoc(thing)
    members = vars(thing).items() if inspect.isclass(thing) else []
    for member_name, member in members:
        public = not member_name.startswith("_")
        if public and (inspect.isfunction(member) or isinstance(member, property | classmethod)):
            assert inspect.getdoc(member), member_name
    written = [(thing.__name__, thing)] if inspect.isfunction(thing) else members
    functions = [
        member
        for member_name, member in written
        if inspect.isfunction(member)
        and member.__module__ == thing.__module__  # not what a protocol is given
        and (member_name == "__init__" or not member_name.startswith("_"))
    ]
    for function in functions:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        assert all(parameter.annotation is not parameter.empty for parameter in parameters), function


def test_the_public_names_are_those_that_are_listed():
    """After a change on purpose: the list is this, sorted, a name a line; and the CHANGELOG tells."""
    listed = (Path(__file__).parent / "public_api.txt").read_text(encoding="utf-8").split()
    assert sorted(f"{package}.{name}" for package, name in PUBLIC) == listed


def test_the_changelog_knows_the_version():
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{priorshift.__version__}]" in changelog


def test_every_module_says_what_it_is_for():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_names_of_the_first_minute_stand_at_the_top():
    assert priorshift.__all__ == ["Predictions", "Prior", "adjust", "adjust_probs", "logit_adjust"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'priorshift' has no attribute 'Posterior'"):
        priorshift.Posterior  # noqa: B018
    with pytest.raises(ImportError):
        from priorshift.losses import hope  # noqa: F401


def test_a_config_can_name_every_loss_backbone_head_sampler_and_source():
    from priorshift import losses
    from priorshift.data import SAMPLERS, sources
    from priorshift.models import backbones, heads
    from priorshift.training import build
    from priorshift.training.config import Stage

    assert get_args(get_type_hints(Stage)["sampler"]) == SAMPLERS
    for room, names, ending in (
        (losses, build.loss_names(), "Loss"),
        (backbones, build.model_names(), ""),
        (heads, build.head_names(), "Head"),
        (sources, build.source_names(), ""),
    ):
        public = [name for name in room.__all__ if name.endswith(ending)]
        assert sorted(names.values()) == sorted(public) and public
        assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert build.head_names()["nearest-class-mean"] == "NearestClassMeanHead"
    assert build.model_names()["small-cnn"] == "SmallCNN"


@pytest.mark.parametrize("room", ["backbones", "heads"])
def test_the_parts_of_a_model_know_no_other_part(room):
    """Heads take features, backbones images: neither imports the other, nor what trains them."""
    for path in (SOURCE / "models" / room).glob("*.py"):
        ours = {module for module in imported_modules(path) if module.startswith("priorshift.models")}
        assert all(module.startswith(f"priorshift.models.{room}.") for module in ours), path


def test_a_lazy_name_is_loaded_once_and_kept(tmp_path, monkeypatch):
    package = tmp_path / "lazyroom"
    package.mkdir()
    (package / "__init__.pyi").write_text("from ._idea import VALUE as VALUE\n__version__: str\n")
    (package / "__init__.py").write_text(
        "from priorshift._lazy import attach\n__getattr__, __dir__, __all__ = attach(__name__, __file__)\n"
    )
    (package / "_idea.py").write_text("VALUE = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("lazyroom")
    assert module.__all__ == ["VALUE"]
    assert "VALUE" not in vars(module) and "lazyroom._idea" not in sys.modules
    assert module.VALUE is module.VALUE
    assert vars(module)["VALUE"] == []
    assert attach("lazyroom", str(package / "__init__.py"))[2] == ["VALUE"]


def test_the_types_ship():
    assert resources.files("priorshift").joinpath("py.typed").is_file()
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} >= {"losses", "adjustment", "shift"}
    for package in PACKAGES:
        assert (package / "__init__.py").is_file()
