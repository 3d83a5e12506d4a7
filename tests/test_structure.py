"""The house rules of the kit, read off its source; each is also tried on a kit that breaks it."""

import ast
import contextlib
import itertools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
KIT = ROOT / "dclip_kit"
MOST_ROOMS = 14

# Imports run downwards only: a room of the kit may use those on the floors before its own.
FLOORS = (
    {"config", "losses", "metrics", "runtime"},
    {"data"},
    {"models"},
    {"features", "search"},
    {"training"},
    {"evaluation"},
    {"plots", "exercises"},
    {"widgets"},
    {"commands"},
    {"__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
TOP = len(FLOORS) - 1
EXTRAS = FLOOR_OF["plots"]  # from here on up, what an extra brings may be imported
OPTIONAL = {
    *("plotly", "ipywidgets", "anywidget", "traitlets", "comm", "ultralytics", "imagehash"),
    *("starlette", "uvicorn", "anyio", "websockets", "peft", "pyarrow", "ray", "datasets"),
    *("diffusers", "transformers", "tokenizers", "onnx", "onnxruntime", "onnxscript"),
}

# Whatever writes or reads pickles. Only `detectors` may hand a .pt file on, and to ultralytics.
PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {
    "torch": {"save", "load"},
    "accelerator": {"save", "save_state", "load_state"},
}


def sources(kit: Path) -> dict[str, Path]:
    """Finds the modules of a kit by dotted name, the package's own name left off."""
    found = {}
    for path in sorted(kit.rglob("*.py")):
        parts = path.relative_to(kit).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    assert found, f"Expected Python files in {kit}, but found none: nothing was checked."
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST, package: str = "", deep: bool = True) -> Iterator[str]:
    """Yields what a file imports, as absolute dotted names that end in the imported thing.

    Args:
        tree: The file, parsed.
        package: The dotted package that the file is in, for its relative imports.
        deep: Whether to look inside functions and `if TYPE_CHECKING`, which do not run at import.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*above, node.module] if node.level else [node.module]
            yield from (".".join([*filter(None, base), alias.name]) for alias in node.names)
        elif deep or not (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            yield from imports(node, package, deep)


def kit_imports(kit: Path, deep: bool = True) -> dict[str, set[str]]:
    """Maps each module of the kit to the modules of the kit that it imports."""
    modules = sources(kit)
    graph = {}
    for name, path in modules.items():
        inside = kit.name if name == "__init__" else f"{kit.name}.{name}"
        package = inside if path.name == "__init__.py" else inside.rpartition(".")[0]
        graph[name] = set()
        stub = path.with_suffix(".pyi")  # what it imports once its names are asked for
        for imported in imports(parse(stub if stub.exists() else path), package, deep):
            if imported == kit.name or imported.startswith(f"{kit.name}."):
                target = imported.removeprefix(kit.name).lstrip(".")
                while target not in modules and target:
                    target = target.rpartition(".")[0]
                graph[name].add(target or "__init__")
        graph[name].discard(name)
    return graph


def floor_problems(kit: Path) -> list[str]:
    problems = []
    graph = kit_imports(kit)
    for name, targets in graph.items():
        place = name.partition(".")[0]
        if place not in FLOOR_OF and place != "__init__":
            problems.append(f"{name} stands on no floor: give it one in {Path(__file__).name}")
        for target in sorted(targets):
            room = target.partition(".")[0]
            if target == "__init__" and name != "__main__":
                problems.append(f"{name} imports from the package itself: name the module")
            elif room != place and FLOOR_OF.get(place, TOP + 1) <= FLOOR_OF.get(room, TOP):
                problems.append(f"{name} imports {target}, which is not below it")
    for target in kit_imports(kit, deep=False).get("__init__", ()):
        if FLOOR_OF.get(target.partition(".")[0], TOP) >= EXTRAS:
            problems.append(f"__init__ imports {target}, which needs an extra, at module level")
    return problems + [f"imports run in a circle: {circle}" for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Finds modules that reach themselves; a package's __init__ may gather its own modules."""
    found = []
    for start in graph:
        reached, todo = set(), [start]
        while todo:
            for target in graph.get(todo.pop(), ()):
                if target not in reached:
                    reached.add(target)
                    todo.append(target)
        if start in reached:
            found.append(start)
    return found


def optional_problems(kit: Path) -> list[str]:
    problems = []
    for name, path in sources(kit).items():
        if FLOOR_OF.get(name.partition(".")[0], 0) < EXTRAS:
            used = {imported.partition(".")[0] for imported in imports(parse(path), deep=False)}
            problems += [f"{name} imports {x} at module level" for x in sorted(used & OPTIONAL)]
    return problems


def pickle_problems(kit: Path) -> list[str]:
    problems = []
    for name, path in sources(kit).items():
        tree = parse(path)
        banned = {f"{module}.{call}" for module, calls in PICKLING_CALLS.items() for call in calls}
        for imported in imports(tree):
            if imported.partition(".")[0] in PICKLERS or imported in banned:
                problems.append(f"{name} imports {imported}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.attr in PICKLING_CALLS.get(node.value.id, ()):
                    problems.append(f"{name}:{node.lineno} uses {node.value.id}.{node.attr}")
            elif isinstance(node, ast.keyword) and ast.unparse(node) == "allow_pickle=True":
                problems.append(f"{name}:{node.value.lineno} allows pickles")
    return problems


def name_problems(kit: Path) -> list[str]:
    """Names that say nothing, that stand for two things, or that are too many to look at."""
    problems, places = [], dict[str, list[str]]()
    for name, path in sources(kit).items():
        if path.name in {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}:
            problems.append(f"{name} says nothing: name the file by what it holds")
        if not path.stem.startswith("__"):
            places.setdefault(path.stem, []).append(name)
    for stem, names in places.items():
        if len(names) > 1:
            problems.append(f"{' and '.join(names)} are both called {stem}: one name, one thing")
    top = {name.partition(".")[0] for name in sources(kit)} - {"__init__", "__main__"}
    if len(top) > MOST_ROOMS:
        problems.append(f"{len(top)} names at the top, more than {MOST_ROOMS}: {sorted(top)}")
    return problems


def docstring_problems(kit: Path) -> list[str]:
    problems = []

    def visit(node: ast.AST, name: str) -> None:
        if not ast.get_docstring(node):
            problems.append(f"{name} has no docstring")
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                if (
                    isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                    and not child.name.startswith("_")
                    and not any("overload" in ast.unparse(d) for d in child.decorator_list)
                ):
                    visit(child, f"{name}.{child.name}")

    for name, path in sources(kit).items():
        visit(parse(path), name)
    return problems


def mirror_problems(kit: Path, tests: Path) -> list[str]:
    """Looks for tests/<room>/test_<module>.py; a room's modules may share test_<room>.py there."""
    problems = []
    for name, path in sources(kit).items():
        *rooms, module = name.strip("_").split(".")
        room = tests.joinpath(*rooms)
        names = [module, *rooms[-1:]]
        shared = module == "main" and (tests / "commands" / "test_main.py").is_file()
        found = shared or any((room / f"test_{each}.py").is_file() for each in names)
        if path.name != "__init__.py" and not found:
            problems.append(f"{name} has no {room.name}/test_{module}.py")
    return problems


CHECKS = {
    "floors": floor_problems,
    "optional": optional_problems,
    "pickle": pickle_problems,
    "names": name_problems,
    "docstrings": docstring_problems,
    "mirror": lambda kit: mirror_problems(kit, kit.parent / "tests"),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_kit_keeps_the_house_rules(check) -> None:
    problems = check(KIT)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_check_that_looked_at_no_file_fails(check, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing was checked"):
        check(tmp_path)


DOC = '"""Doc."""\n'
# A kit that keeps the rules, to which each test adds a module.
FILES = {
    "__init__": "",
    "losses": "",
    "data.__init__": "",
    "models.__init__": "",
    "models.clip": "",
    "features.store": "",
    "training.__init__": "",
    "training.distillation": "from dclip_kit.models.clip import load_clip",
    "evaluation.__init__": "",
    "plots.__init__": "",
}


def build(kit: Path, module: str, source: str) -> Path:
    for name, text in (FILES | {module: source}).items():
        path = kit.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DOC + text, encoding="utf-8")
    return kit


@pytest.mark.parametrize(
    ("check", "module", "source", "says"),
    [
        ("floors", "metrics", "from dclip_kit.training import distill", "not below"),
        ("floors", "metrics", "def f():\n    import dclip_kit.plots", "not below"),
        ("floors", "metrics", "from . import models", "not below"),
        ("floors", "data.pocket.scenes", "from ...training import distill", "not below"),
        ("floors", "search.index", "from dclip_kit.features import store", "not below"),
        ("floors", "metrics", "from dclip_kit.losses import contrastive_loss", "not below"),
        ("floors", "metrics", "from dclip_kit import distill", "name the module"),
        ("floors", "widget_things", "", "no floor"),
        ("floors", "__init__", "from dclip_kit.plots import draw", "needs an extra"),
        ("floors", "models.clip", "from dclip_kit.training import distillation", "circle"),
        ("optional", "training.plan", "import plotly.graph_objects as go", "plotly"),
        ("optional", "models.detector", "try:\n    import ultralytics\nexcept E: pass", "ultr"),
        ("optional", "data.hub", "from datasets import load_dataset", "datasets"),
        ("pickle", "training.plan", "import pickle", "pickle"),
        ("pickle", "training.plan", "def f():\n    torch.save(1, 'x')", "torch.save"),
        ("pickle", "training.plan", "from torch import load", "torch.load"),
        ("pickle", "training.plan", "np.load('x', allow_pickle=True)", "allows"),
        ("pickle", "training.plan", "accelerator.save_state('x')", "save_state"),
        ("names", "training.clip", "", "models.clip and training.clip are both called clip"),
        ("names", "models.utils", "", "says nothing"),
        ("docstrings", "training.plan", "def distill(): ...", "training.plan.distill has no"),
        ("docstrings", "training.plan", "class A:\n    'Doc.'\n    def b(self): ...", "plan.A.b"),
        ("mirror", "losses", "", "test_losses.py"),
    ],
)
def test_each_check_sees_the_breach(check, module, source, says, tmp_path: Path) -> None:
    problems = CHECKS[check](build(tmp_path / "dclip_kit", module, source))
    assert any(says in problem for problem in problems), problems


def test_too_many_rooms_are_seen(tmp_path: Path) -> None:
    for number in range(MOST_ROOMS):
        kit = build(tmp_path / "dclip_kit", f"room{number}", "")
    assert any("names at the top" in problem for problem in CHECKS["names"](kit))


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        ("floors", "training.plan", "from dclip_kit.losses import contrastive_loss"),
        ("floors", "evaluation.probe", "from dclip_kit.training import distillation"),
        ("floors", "training.plan", "from dclip_kit.training.distillation import distill"),
        ("floors", "__init__", "def __getattr__(name):\n    from dclip_kit import plots"),
        ("floors", "data.pocket.__init__", "from dclip_kit.data.pocket.scenes import render"),
        ("optional", "models.detector", "def load():\n    from ultralytics import YOLO"),
        ("optional", "plots.bars", "import plotly"),
        ("pickle", "training.plan", "from safetensors.torch import load_file, save_file"),
        ("docstrings", "training.plan", "def _hidden(): ..."),
        ("names", "training.plan", ""),
    ],
)
def test_no_check_cries_wolf(check, module, source, tmp_path: Path) -> None:
    assert CHECKS[check](build(tmp_path / "dclip_kit", module, source)) == []


def test_lower_floors_import_without_the_extras() -> None:
    """Imports them all in a fresh interpreter in which the extras cannot be imported."""
    names = [name for name in sources(KIT) if FLOOR_OF.get(name.partition(".")[0], 0) < EXTRAS]
    modules = ["dclip_kit" if name == "__init__" else f"dclip_kit.{name}" for name in names]
    program = (
        f"import importlib, sys\nsys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_kit_imports_where_the_modules_of_unix_are_missing() -> None:
    """As on Windows; what it needs of others is imported before, as they have theirs there."""
    modules = ["dclip_kit" if name == "__init__" else f"dclip_kit.{name}" for name in sources(KIT)]
    program = f"""
import importlib, sys
for name in {modules}: importlib.import_module(name)
for name in [*sys.modules]:
    if name.partition(".")[0] == "dclip_kit": del sys.modules[name]
sys.modules.update(dict.fromkeys(["resource", "fcntl", "termios", "pwd", "grp"]))
sys.platform = "win32"
for name in {modules}: importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What comes with a declared one: ipykernel, nbconvert (two), ultralytics, transformers. The last is
# needed by some CLIPs only, and asked for by its pip line.
WITH_OTHERS = {"ipython", "nbclient", "nbformat", "pyyaml", "tokenizers", "transformers"}


def test_what_the_kit_imports_is_declared_and_what_is_installed_is_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(r.name): r for r in map(Requirement, itertools.chain(*groups))}
    provided = metadata.packages_distributions()
    used = {
        each.partition(".")[0] for path in sources(KIT).values() for each in imports(parse(path))
    }
    used -= {*sys.stdlib_module_names, KIT.name}
    for name in sorted(used & provided.keys()):
        found = {canonicalize_name(each) for each in provided[name]}
        assert found & (declared.keys() | WITH_OTHERS), f"{name} is imported and not declared"
    assert len(used & provided.keys()) > 15
    for name, requirement in declared.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            assert requirement.specifier.contains(metadata.version(name)), requirement
