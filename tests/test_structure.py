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
from typing import get_args, get_type_hints

import pytest

import priorshift
from priorshift._lazy import attach

SOURCE = Path(priorshift.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.pyi"))

PURE = {"losses", "adjustment", "estimation", "shift", "metrics"}
"""Rooms of plain functions over torch and NumPy: they know the priors and themselves."""
JUDGING = PURE | {"priors", "predictions", "_files"}
MAKING = JUDGING | {"data", "models"}
MAY_IMPORT = {
    "_lazy": set(),
    "_files": set(),
    "priors": set(),
    **{room: {"priors"} for room in PURE},
    "kernels": {"priors"},
    "losses": {"priors", "kernels"},
    "estimation": {"priors", "adjustment", "_files"},
    "sklearn": {"priors", "adjustment", "estimation"},
    "published": set(),
    "predictions": {"priors", "adjustment", "_files"},
    "evaluation": JUDGING,
    "adaptation": JUDGING | {"evaluation"},
    "out_of_core": JUDGING,
    "data": JUDGING - {"predictions"},
    "models": {"priors", "adjustment"},
    "training": MAKING,
    "recipes": MAKING | {"training"},
    "report": MAKING | {"evaluation", "adaptation", "training", "recipes"},
    "reproduce": MAKING | {"evaluation", "training", "recipes", "report", "published"},
    "export": MAKING | {"training"},
    "hub": MAKING | {"evaluation", "training", "report", "export"},
    "commands": MAKING
    | {"evaluation", "adaptation", "out_of_core"}
    | {"training", "recipes", "report", "reproduce", "published", "export"},
    "cli": {"commands"},
}
"""Room → the other rooms that it may import. Nobody may import `cli`, nor anybody but it `commands`."""
PURE_THIRD_PARTIES = {"torch", "numpy", "jaxtyping"}


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
    assert others <= allowed, f"{room} may not import {sorted(others - allowed)}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if room_of(path) in PURE | {"priors"}], ids=lambda path: path.name
)
def test_the_first_rooms_need_torch_and_numpy_alone(path):
    third_parties = {module.split(".")[0] for module in imported_modules(path)} - set(sys.stdlib_module_names)
    assert third_parties <= PURE_THIRD_PARTIES | {"priorshift"}


def test_the_core_needs_what_a_core_install_brings():
    core = PURE_THIRD_PARTIES | {"safetensors", "priorshift"}
    extras = {
        "kernels": {"triton", "numba", "llvmlite"},  # the first comes with torch where there are GPUs
        "sklearn": {"sklearn"},
        "data": {"sklearn", "PIL", "datasets", "torchvision", "pyarrow"},
        "models": {"timm"},
        "out_of_core": {"pyarrow", "distributed"},
        "report": {"matplotlib", "jinja2", "markupsafe", "rich"},
        "reproduce": {"matplotlib"},
        "export": {"onnx", "onnxscript"},
        "hub": {"huggingface_hub"},
        "commands": {"tyro", "rich", "filelock"},
        "cli": {"tyro"},
    }
    for path in FILES:
        needed = {module.split(".")[0] for module in imported_modules(path)} - set(sys.stdlib_module_names)
        assert needed <= core | extras.get(room_of(path), set()), path


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


def test_the_library_loads_no_plotting_command_line_or_data_set_library():
    code = (
        "from priorshift import Prior, Predictions, adjust\n"
        "import priorshift.evaluation, priorshift.training.loop, priorshift.losses\n"
        "priorshift.losses.LADELoss"
    )
    extras = ("matplotlib", "jinja2", "rich", "tyro", "sklearn", "scipy", "pandas")
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


PUBLIC = [
    (name_of(package), alias.name)
    for package in PACKAGES
    for line in stub_of(package)
    for alias in line.names
]


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
    assert priorshift.__all__ == ["Predictions", "Prior", "adjust", "logit_adjust"]


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
