"""The site: its Python runs and prints what it says, its links lead somewhere, its API pages are whole."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from docs.site.stage import stage
from PIL import Image

from benchmarks.readme_table import with_table
from priorshift.cli import VERBS, main
from priorshift.recipes import __all__ as RECIPES
from priorshift.recipes.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MODULES = ("hub", "recipes.methods")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def ids(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"^```.*?^```$|^ {4,}.*$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)


def run(name, namespace):
    """Run the Python of a page in order and compare what it prints with the `text` block that follows."""
    blocks = FENCED.findall((DOCS / name).read_text(encoding="utf-8"))
    compared = 0
    for number, (language, code) in enumerate(blocks):
        if language != "python":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, f"docs/{name}, block {number}", "exec"), namespace)
        following = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
        assert printed.getvalue() == (following[1] if following[0] == "text" else "")
        compared += following[0] == "text"
    assert compared
    return namespace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_first_page_goes_from_a_csv_to_an_adapted_one_in_ten_lines(folder):
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    _, code = next(block for block in FENCED.findall(page) if "estimate_prior" in block[1])
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    namespace = run("index.md", {})
    assert sorted(path.name for path in folder.iterdir()) == ["adapted.csv", "predictions.csv"]
    assert (folder / "adapted.csv").read_text().count("\n") == 2001
    assert abs(namespace["adapted"].sum(axis=1) - 1).max() < 1e-9


@pytest.mark.parametrize("name", ["mistakes.md", "theory.md", "your_logits.md"])
def test_python_of_a_page_prints_what_the_page_says(name, folder):
    run(name, {})


def test_own_images_are_split_as_the_page_says(folder):
    for name, count in {"cat": 50, "dog": 20, "horse": 10}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(count):
            colour = tuple(torch.randint(256, (3,)).tolist())
            Image.new("RGB", (4, 4), colour).save(folder / "photos" / name / f"{number}.png")
    run("your_images.md", {})


COMMANDS = [
    (page, line.split("#")[0].strip())
    for page in ("index.md", "your_logits.md", "your_images.md")
    for language, code in FENCED.findall((DOCS / page).read_text(encoding="utf-8"))
    if language == "sh"
    for line in code.splitlines()
    if line.startswith("priorshift ")
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_has_a_verb_a_recipe_and_options_that_exist(page, command, capsys):
    verb, *words = command.split()[1:]
    assert verb in VERBS
    named = [words[0]] if verb == "train" else []
    assert {name.replace("-", "_") for name in named} <= set(RECIPES)
    assert main([verb, *named, "--help"]) == 0
    text = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), option
    if "--method" in words:
        assert words[words.index("--method") + 1] in METHODS


def anchors(page):
    """Of headings as GitHub and the site make them, and of what the API page describes."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings
    } | set(re.findall(r"^::: (\S+)$", text, flags=re.M))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_a_file_and_to_a_heading_in_it(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


def public_names():
    """Every name of a stub, and every class and function of the modules that are no packages."""
    for stub in sorted((ROOT / "src/priorshift").rglob("__init__.pyi")):
        package = ".".join(stub.relative_to(ROOT / "src").parent.parts)
        for line in parsed(package).body:
            if isinstance(line, ast.ImportFrom):
                yield from (f"{package}.{name.asname}" for name in line.names)
    for module in MODULES:
        for node in parsed(f"priorshift.{module}").body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield f"priorshift.{module}.{node.name}"


@functools.cache
def parsed(module):
    path = ROOT / "src" / module.replace(".", "/")
    file = next(file for file in (path / "__init__.pyi", path.with_suffix(".py")) if file.is_file())
    return ast.parse(file.read_text(encoding="utf-8"))


def home(dotted):
    """Where what a public name stands for is written: two names of one thing have one home."""
    module, name = dotted.rsplit(".", 1)
    for line in parsed(module).body:
        if isinstance(line, ast.ImportFrom) and name in {alias.asname or alias.name for alias in line.names}:
            return home(f"{module}.{line.module}.{name}" if line.level else f"{line.module}.{name}")
    return dotted


def resolve(dotted):
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not error.name or not dotted.startswith(error.name):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(dotted)


def test_every_public_name_is_described_on_one_api_page_and_nothing_else_is():
    described = [
        name
        for page in sorted((DOCS / "api").glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.M)
    ]
    homes = [home(name) for name in described]
    assert len(homes) == len(set(homes))
    assert set(homes) == {home(name) for name in public_names()}
    assert set(described) <= set(public_names())


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_of_the_library_in_a_page_are_spelled_right(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`(priorshift(?:\.\w+)+)[`(]", text):
        if f"\nclass {name.rsplit('.', 1)[1]}(" not in text:  # which the page tells the reader to write
            resolve(name)


def test_every_page_is_in_the_navigation_and_the_reverse():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", config, flags=re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) == {ids(page) for page in PAGES}


def test_table_of_the_readme_is_that_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, (ROOT / "benchmarks/results/quickstart.md").read_text("utf-8")) == readme


@pytest.mark.slow
def test_site_builds_with_both_builders_without_a_warning_and_fetches_nothing(tmp_path):
    for package in ("mkdocs", "zensical", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed, which the extra `docs` brings")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for folder in ("docs", "src"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    stage(tmp_path / "build" / "pages")
    site = tmp_path / "build" / "site"
    for builder in ("mkdocs", "zensical"):
        shutil.rmtree(site, ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-m", builder, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        html = {page.relative_to(site).as_posix(): page.read_text("utf-8") for page in site.rglob("*.html")}
        assert len(html) > len(PAGES)
        for page, text in html.items():
            assert not re.search(
                r"""<(?:script|img|iframe|link)[^>]+(?:src|href)=["']?(?:https?:)?//""", text
            ), page
            assert not re.search(r"<m[a-z]+[^>]*>\\", text), f"A formula of {page} has an unknown command."
        losses = html["docs/api/losses/index.html"]
        assert 'id="priorshift.losses.LADELoss"' in losses and "<math" in losses
