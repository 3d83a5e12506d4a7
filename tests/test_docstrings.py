"""What docstrings name in backticks is there: functions, modules, settings, files and commands."""

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dclip_kit.commands import COMMANDS
from dclip_kit.config import POLICIES, PROFILES, RECIPES

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "dclip_kit").rglob("*.py"))
PAGES = [ROOT / "dclip_kit" / "commands" / "CLUSTER.md", ROOT / "CONTRIBUTING.md"]
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# What others call so: accelerate, Slurm, NCCL, the hub.
OTHERS = {
    "accelerate",
    "notebook_launcher",
    "make_subplots",
    "num_processes",
    "scontrol",
    "srun",
    "launch",
}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def names_of(tree: ast.AST) -> set[str]:
    """Whatever a file defines or takes: functions, classes, arguments, attributes, variables."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # keys of records, environment variables
    return found


def members_of(tree: ast.AST) -> set[str]:
    """What objects of a file's classes have: fields, methods, and what is set of `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found |= {x.target.id for x in node.body if isinstance(x, ast.AnnAssign)}
            found |= {x.name for x in node.body if isinstance(x, ast.FunctionDef)}
            found |= {
                x.attr
                for x in ast.walk(node)
                if isinstance(x, ast.Attribute) and isinstance(x.ctx, ast.Store)
            }
    return found


TREES = {file: parse(file) for file in FILES}
# Of docstrings themselves nothing counts as defined: they are long and no name.
DEFINED = {file: {x for x in names_of(tree) if len(x) < 60} for file, tree in TREES.items()}
EVERYWHERE = set().union(*DEFINED.values())
MEMBERS = set().union(*map(members_of, TREES.values()))
MODULES = {file.stem if file.stem != "__init__" else file.parent.name: file for file in FILES}
WORDS = {*COMMANDS, *PROFILES, *RECIPES, *POLICIES, *MODULES, *dir(builtins)}


def is_there(name: str) -> bool:
    name = name.removeprefix("kit.").removeprefix("dclip_kit.")
    first, _, rest = name.partition(".")
    if rest and first in MODULES and rest.split(".")[0] in DEFINED[MODULES[first]]:
        return True
    # A class or an object, and what it has.
    if rest and first in EVERYWHERE and all(part in MEMBERS for part in rest.split(".")):
        return True
    if not rest:
        return name in EVERYWHERE | WORDS | OTHERS
    try:
        found = importlib.import_module(first)
        for part in rest.split("."):
            found = getattr(found, part, None) or importlib.import_module(f"{first}.{part}")
    except ImportError:
        return False
    return True


def test_something_is_looked_at() -> None:
    assert len(FILES) > 60 and len(EVERYWHERE) > 1000
    assert is_there("load_clip") and is_there("experiment.run") and is_there("torch.lerp")
    assert not is_there("precision.autocast") and not is_there("find_run")
    assert is_there("kit.load_clip") and not is_there("kit.find_run")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_docstring_names_is_there(file) -> None:
    named = {
        token
        for text in docstrings(TREES[file])
        for token in re.findall(r"`([^`\n]+)`", text)
        if NAME.fullmatch(token) and token.rpartition(".")[2] not in ("json", "ipynb", "py")
    }
    assert sorted(name for name in named if not is_there(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    tokens = re.findall(r"`([^`\n]+)`", text)
    names = {token for token in tokens if NAME.fullmatch(token) and "." not in token}
    paths = {token for token in tokens if re.fullmatch(r"[\w./]+\.(py|md|toml|json)", token)}
    assert tokens
    assert [path for path in paths if not any(ROOT.rglob(path))] == []
    own = {name for name in names if not name.isupper()}  # variables are others' settings
    assert sorted(name for name in own if not is_there(name)) == []


def test_numbered_differences_of_the_published_code_are_there() -> None:
    config = (ROOT / "dclip_kit" / "config.py").read_text(encoding="utf-8")
    texts = " ".join(" ".join(text.split()) for tree in TREES.values() for text in docstrings(tree))
    numbers = re.findall(r"(\d+) in `config\.RECIPES`", texts)
    assert len(numbers) > 2
    assert [number for number in numbers if f"# {number}: " not in config] == []
