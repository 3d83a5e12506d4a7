"""The house rules of the kit, read off its source; each is also tried on a kit that breaks it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KIT = ROOT / "dclip_kit"
MAX_LINES = 350

# Imports run downwards only. A module or package of the kit stands on exactly one floor.
FLOORS = (
    {"config", "regions", "padding", "losses", "metrics", "assets", "checkpoint", "network"}
    | {"distributed", "printing", "threads", "nearest", "memory"},
    {"encoders", "embedding", "hub", "detectors", "yolo", "datasets", "features", "teacher"}
    | {"student", "pocket", "reading", "provenance", "store", "extraction"}
    | {"crops", "tokens", "precision"},
    {"train", "evaluate", "search", "arms", "report", "walk", "comparison", "facets"}
    | {"inspection", "probe", "selection", "profile_data", "index", "runs", "preparation"}
    | {"search_index", "approximate", "fresh_scenes"},
    {"plots", "widgets", "notebooks", "commands", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
TOP = len(FLOORS) - 1
OPTIONAL = {"plotly", "ipywidgets", "anywidget", "ultralytics", "faiss", "webdataset", "imagehash"}

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
            if target == "__init__" and name != "__main__":
                problems.append(f"{name} imports from the package itself: name the module")
            elif FLOOR_OF.get(place, TOP) < FLOOR_OF.get(target.partition(".")[0], TOP):
                problems.append(f"{name} imports {target}, which is above it")
    for target in kit_imports(kit, deep=False).get("__init__", ()):
        if FLOOR_OF.get(target.partition(".")[0]) == TOP:
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
        if FLOOR_OF.get(name.partition(".")[0]) != TOP:
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


def size_problems(kit: Path) -> list[str]:
    problems = []
    for name, path in sources(kit).items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            problems.append(f"{name} has {lines} lines, more than {MAX_LINES}: it has two jobs")
        if path.name in {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}:
            problems.append(f"{name} says nothing: name the file by what it holds")
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
    """Looks for tests/test_<module>.py; a package's modules may share tests/test_<package>.py."""
    problems = []
    for name, path in sources(kit).items():
        parts = name.strip("_").split(".")
        names = {"_".join(parts), parts[0], parts[-1]}
        found = any((tests / f"test_{each}.py").is_file() for each in names)
        if path.name != "__init__.py" and not found:
            problems.append(f"{name} has no tests/test_{parts[-1]}.py")
    return problems


CHECKS = {
    "floors": floor_problems,
    "optional": optional_problems,
    "pickle": pickle_problems,
    "size": size_problems,
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


@pytest.mark.parametrize(
    ("check", "module", "source", "says"),
    [
        ("floors", "metrics", "from dclip_kit.train import distill", "above"),
        ("floors", "metrics", "def f():\n    import dclip_kit.plots", "above"),
        ("floors", "metrics", "from . import encoders", "above"),
        ("floors", "pocket.scenes", "from ..train import distill", "above"),
        ("floors", "metrics", "from dclip_kit import distill", "name the module"),
        ("floors", "widget_things", "", "no floor"),
        ("floors", "__init__", "from dclip_kit.plots import draw", "needs an extra"),
        ("floors", "train", "from dclip_kit import evaluate", "circle"),
        ("optional", "train", "import plotly.graph_objects as go", "plotly"),
        ("optional", "detectors", "try:\n    from ultralytics import YOLO\nexcept E: pass", "ultr"),
        ("pickle", "train", "import pickle", "pickle"),
        ("pickle", "train", "def f():\n    torch.save(1, 'x')", "torch.save"),
        ("pickle", "train", "from torch import load", "torch.load"),
        ("pickle", "train", "np.load('x', allow_pickle=True)", "allows"),
        ("pickle", "train", "accelerator.save_state('x')", "save_state"),
        ("size", "train", "x = 1\n" * 350, "351 lines"),
        ("size", "utils", "", "says nothing"),
        ("docstrings", "train", "def distill(): ...", "train.distill has no docstring"),
        ("docstrings", "train", "class A:\n    'Doc.'\n    def b(self): ...", "train.A.b"),
        ("mirror", "losses", "", "tests/test_losses.py"),
    ],
)
def test_each_check_sees_the_breach(check, module, source, says, tmp_path: Path) -> None:
    kit = tmp_path / "dclip_kit"
    files = {"__init__": "", "encoders": "", "plots": "", "pocket.__init__": "", "train": ""}
    files |= {"evaluate": "from dclip_kit.train import distill", module: source}
    for name, text in files.items():
        path = kit.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DOC + text, encoding="utf-8")
    problems = CHECKS[check](kit)
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        ("floors", "train", "from dclip_kit.losses import contrastive_loss"),
        ("floors", "evaluate", "from dclip_kit.train import distill"),  # sideways, and no circle
        ("floors", "__init__", "def __getattr__(name):\n    from dclip_kit import plots"),
        ("floors", "pocket.__init__", "from dclip_kit.pocket.scenes import render"),
        ("optional", "detectors", "def load():\n    from ultralytics import YOLO"),
        ("optional", "plots", "import plotly"),
        ("pickle", "train", "from safetensors.torch import load_file, save_file"),
        ("docstrings", "train", "def _hidden(): ..."),
    ],
)
def test_no_check_cries_wolf(check, module, source, tmp_path: Path) -> None:
    kit = tmp_path / "dclip_kit"
    files = {"__init__": "", "losses": "", "train": "", "pocket.scenes": "", module: source}
    for name, text in files.items():
        path = kit.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DOC + text, encoding="utf-8")
    assert CHECKS[check](kit) == []


def test_lower_floors_import_without_the_extras() -> None:
    """Imports them all in a fresh interpreter in which the extras cannot be imported."""
    names = [name for name in sources(KIT) if FLOOR_OF.get(name.partition(".")[0]) != TOP]
    modules = ["dclip_kit" if name == "__init__" else f"dclip_kit.{name}" for name in names]
    program = (
        f"import importlib, sys\nsys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
