"""Guards on the committed notebooks, each tried on a bad one too; and the commands behind them.

nbval compares outputs; these guards see to it that there is something to compare.
"""

import ast
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from assets.make.notebook_files import make_static, put_badge, refresh

ROOT = Path(__file__).parent.parent.parent
MAX_CELL_LINES = 15
MAX_BYTES = 500_000
MAX_CELLS = 25
MAX_PARAGRAPH = 560  # characters: five lines of a page
TRACEBACK = "Traceback (most recent call last)"
WIDGET = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"


def notebooks(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.ipynb"))
    assert found, f"Expected notebooks in {folder}, but found none: nothing was checked."
    return found


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", ())]


def statements(cell: NotebookNode) -> ast.Module:
    lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    return ast.parse("\n".join(lines))


def texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (v for k, v in output.get("data", {}).items() if k.startswith("text/"))


def guard_size(notebook: NotebookNode) -> Iterator[str]:
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_BYTES:
        yield f"the notebook has {size} bytes, more than {MAX_BYTES}"
    for cell in code_cells(notebook):
        if (lines := len(cell.source.splitlines())) > MAX_CELL_LINES:
            yield f"a cell has {lines} lines, more than {MAX_CELL_LINES}"


def guard_logic(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if "exercise" in cell.metadata.get("tags", []):  # a reader writes a function there
            continue
        for node in ast.walk(statements(cell)):
            if isinstance(node, ast.ClassDef):
                yield f"class {node.name} belongs into the kit"
            if isinstance(node, ast.FunctionDef) and node.end_lineno != node.lineno:
                yield f"def {node.name} is more than a one-liner: it belongs into the kit"


def guard_magics(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        for line in cell.source.splitlines():
            if re.match(r"\s*(!|%%|%(cd|pip|conda|mamba|uv|sx|system|env)\b)", line):
                yield f"{line.strip()!r} changes the machine that the notebook runs on"


def guard_parameters(notebook: NotebookNode) -> Iterator[str]:
    cells = tagged(notebook, "parameters")
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged `parameters`, and papermill needs exactly one"
    if tagged(notebook, "injected-parameters"):
        yield "a run with other parameters was committed"
    for cell in cells:
        for node in statements(cell).body:
            try:
                assert isinstance(node, ast.Assign | ast.AnnAssign)
                ast.literal_eval(node.value)
            except (AssertionError, ValueError):
                yield f"`{ast.unparse(node)}` among the parameters is not a literal"


def guard_execution(notebook: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, so it did not run once from top to bottom"
    if any(not cell.source.strip() for cell in notebook.cells):
        yield "a cell is empty"


def guard_outputs(notebook: NotebookNode) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "widget state is stored"
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"an error is stored: {output.ename}"
            if PLOTLY in data and not {"image/png", "image/svg+xml"} & set(data):
                yield "a figure has no picture beside it: run `make notebooks`"
            if WIDGET in data:
                yield "a widget is stored, which is an error to whoever has no kernel"
        if match := re.search(r"/(home|root|Users)/\S*", "\n".join(texts(cell))):
            yield f"an output names somebody's own folder: {match[0]}"
        if any(TRACEBACK in text for text in texts(cell)):
            yield "an output shows a traceback"


def guard_checked(notebook: NotebookNode) -> Iterator[str]:
    cells = tagged(notebook, "nbval-check-output")
    if not cells:
        yield "no cell is tagged `nbval-check-output`"
    for cell in cells:
        if not "".join(texts(cell)).strip():
            yield f"a checked cell has no stored text: {cell.source.splitlines()[0]}"


def guard_assertions(notebook: NotebookNode) -> Iterator[str]:
    last = code_cells(notebook)[-2:]
    if not any(isinstance(node, ast.Assert) for c in last for node in ast.walk(statements(c))):
        yield "neither of the last two code cells asserts anything"


def guard_memory(notebook: NotebookNode) -> Iterator[str]:
    """nbval runs the assertion, so that each kernel's peak is measured in every test run."""
    if not re.search(
        r"^assert (kit\.)?peak_memory_mb\(\) < .*\b1200\b", code_cells(notebook)[-1].source, re.M
    ):
        yield "the last code cell does not hold the kernel's memory to 1200 MB"


def guard_rhythm(notebook: NotebookNode) -> Iterator[str]:
    kinds = [cell.cell_type for cell in notebook.cells]
    title = notebook.cells[0].source.partition("\n")[0]
    if kinds[0] != "markdown" or not re.fullmatch(r"# .+\?", title.strip()):
        yield "it does not open with a question as its title (`# …?`)"
    unexplained = sum(a == b == "code" for a, b in pairwise(kinds))
    if unexplained and kinds.count("markdown") <= kinds.count("code"):
        yield f"{unexplained} code cells follow another without a word of prose between"
    plain = [cell for cell in notebook.cells if "exercise" not in cell.metadata.get("tags", [])]
    if len(plain) > MAX_CELLS:
        yield f"{len(plain)} cells beside the exercises, more than {MAX_CELLS}"
    for cell in notebook.cells:
        for paragraph in cell.source.split("\n\n") if cell.cell_type == "markdown" else ():
            if len(paragraph) > MAX_PARAGRAPH and not re.match(r"[-|<`]", paragraph):
                yield f"a paragraph of more than five lines: {paragraph[:40]} …"


Guard = Callable[[NotebookNode], Iterator[str]]
GUARDS: dict[str, Guard] = {
    name.removeprefix("guard_"): check
    for name, check in globals().items()
    if name.startswith("guard_")
}


def good_notebook() -> NotebookNode:
    """A small notebook that every guard lets pass."""
    figure = {PLOTLY: {"data": []}, "image/png": "iVBORw0KGgo="}
    cells = [
        new_markdown_cell("# Does it look?\nWe shall see."),
        new_code_cell("import math\nhalf = lambda x: x / 2\ndef double(x): return 2 * x"),
        new_markdown_cell("Parameters."),
        new_code_cell(
            "seed = 0\nsizes: list = [1, -2]  # a reason", metadata={"tags": ["parameters"]}
        ),
        new_markdown_cell("A figure."),
        new_code_cell("draw()", outputs=[new_output("display_data", figure)]),
        new_markdown_cell("The key figures."),
        new_code_cell(
            "print('R@1 15.2')",
            metadata={"tags": ["nbval-check-output"]},
            outputs=[new_output("stream", text="R@1 15.2\n")],
        ),
        new_markdown_cell("Checks."),
        new_code_cell("assert half(2) == 1\nassert peak_memory_mb() < 1200  # MB"),
    ]
    notebook = new_notebook(cells=cells)
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = count
    return notebook


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_committed_notebooks_pass(guard: Guard) -> None:
    problems = [
        f"{path.name}: {problem}"
        for path in notebooks(ROOT / "notebooks")
        for problem in guard(nbformat.read(path, as_version=4))
    ]
    assert not problems, "\n".join(problems)


def repeated(folder: Path, length: int = 4) -> list[str]:
    """Runs of so many statements that two notebooks share: what they do belongs to the kit."""
    places: dict[tuple[str, ...], set[str]] = {}
    for path in notebooks(folder):
        for cell in code_cells(nbformat.read(path, as_version=4)):
            if "parameters" in cell.metadata.get("tags", ()):
                continue
            done = [ast.unparse(each) for each in statements(cell).body]
            done = [each for each in done if not each.startswith(("import ", "from "))]
            for start in range(len(done) - length + 1):
                places.setdefault(tuple(done[start : start + length]), set()).add(path.name)
    return [f"{sorted(names)} share {run}" for run, names in places.items() if len(names) > 1]


def test_no_two_notebooks_do_the_same() -> None:
    assert repeated(ROOT / "notebooks") == []


def test_what_two_notebooks_share_is_seen(tmp_path: Path) -> None:
    shared = "import math\na = 1\nb = math.pi\nc = a\nprint(\n    a + b)"
    for name, source in (
        ("a", shared),
        ("b", f"c = 0\n{shared}"),
        ("c", "a = 1\nb = math.pi\nc = a"),
    ):
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    (problem,) = repeated(tmp_path)
    assert problem.startswith("['a.ipynb', 'b.ipynb'] share")


def test_finding_no_notebook_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing was checked"):
        notebooks(tmp_path)


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_good_notebook_passes(guard: Guard) -> None:
    assert list(guard(good_notebook())) == []


def _set(at: int, **fields) -> Callable[[NotebookNode], None]:
    return lambda notebook: code_cells(notebook)[at].update(fields)


def _error(notebook: NotebookNode) -> None:
    code_cells(notebook)[0].outputs = [new_output("error", ename="ValueError", evalue="no")]


def _without_prose(notebook: NotebookNode) -> None:
    notebook.cells = [notebook.cells[0], *code_cells(notebook)]


def _strip(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        cell.update(outputs=[], execution_count=None)


@pytest.mark.parametrize(
    ("guard", "spoil", "says"),
    [
        ("size", _set(0, source="x = 1\n" * 16), "16 lines"),
        ("size", _set(0, source="x = 1" + " " * MAX_BYTES), "bytes"),
        ("logic", _set(0, source="class A: pass"), "class A"),
        ("logic", _set(0, source="if True:\n    def f(x):\n        return x"), "def f"),
        ("magics", _set(0, source="!pip install torch"), "pip"),
        ("magics", _set(0, source="%cd .."), "cd"),
        ("magics", _set(0, source="%%bash\nls"), "bash"),
        ("parameters", _set(1, metadata={}), "0 cells"),
        ("parameters", _set(0, metadata={"tags": ["parameters"]}), "2 cells"),
        ("parameters", _set(0, metadata={"tags": ["injected-parameters"]}), "other parameters"),
        ("parameters", _set(1, source="seed = int('0')"), "not a literal"),
        ("parameters", _set(1, source="import os"), "not a literal"),
        ("execution", _set(2, execution_count=7), "execution counts"),
        ("execution", _strip, "execution counts"),
        ("execution", _set(2, source=" "), "empty"),
        ("outputs", lambda notebook: notebook.metadata.update(widgets={}), "widget state"),
        ("outputs", _error, "ValueError"),
        ("outputs", lambda nb: code_cells(nb)[2].outputs[0].data.update({WIDGET: {}}), "a widget"),
        ("outputs", lambda nb: code_cells(nb)[2].outputs[0].data.pop("image/png"), "no picture"),
        ("outputs", lambda nb: code_cells(nb)[3].outputs[0].update(text="/home/me/x"), "folder"),
        (
            "outputs",
            lambda nb: (
                code_cells(nb)[3].outputs[0].update(text="Traceback (most recent call last)")
            ),
            "a traceback",
        ),
        ("checked", _set(3, metadata={}), "no cell"),
        ("checked", _set(3, outputs=[]), "no stored text"),
        ("checked", _strip, "no stored text"),
        ("assertions", _set(4, source="half(2) == 1"), "asserts anything"),
        ("memory", _set(4, source="assert peak_memory_mb() < 9000"), "1200 MB"),
        ("rhythm", _without_prose, "without a word"),
        ("rhythm", lambda nb: nb.cells[0].update(source="# It looks"), "question"),
        ("rhythm", lambda nb: nb.cells.extend(nb.cells[:2] * 13), "more than 25"),
        ("rhythm", lambda nb: nb.cells[2].update(source="x" * 600), "five lines"),
    ],
)
def test_each_guard_sees_its_breach(guard: str, spoil, says: str) -> None:
    notebook = good_notebook()
    spoil(notebook)
    problems = list(GUARDS[guard](notebook))
    assert any(says in problem for problem in problems), problems


def write(path: Path, *sources: str) -> Path:
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(notebook, path)
    return path


def test_refresh_stores_outputs_and_nothing_volatile(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ipynb",
        "import os, sys, pathlib\nprint(pathlib.Path.cwd().name)",
        "print(os.environ['PLOTLY_RENDERER'])",
        "for i in range(3): print(f'\\r{i}', end='', file=sys.stderr, flush=True)",
    )
    refresh(path)
    notebook = nbformat.read(path, as_version=4)
    assert [list(texts(cell)) for cell in notebook.cells] == [
        [f"{tmp_path.name}\n"],
        ["plotly_mimetype+png\n"],
        [],
    ]
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert not any(cell.metadata for cell in notebook.cells)
    assert "widgets" not in notebook.metadata
    assert list(tmp_path.iterdir()) == [path]


def test_a_notebook_run_elsewhere_is_made_static(tmp_path: Path) -> None:
    notebook = good_notebook()
    _set(0, outputs=[new_output("display_data", {"text/plain": "run me", WIDGET: {}})])(notebook)
    _set(1, outputs=[new_output("display_data", {WIDGET: {}})])(notebook)  # says nothing: it stays
    notebook.metadata["widgets"] = {"state": {}}
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook, path)
    make_static(path)
    found = nbformat.read(path, as_version=4)
    first, second, figure = (cell.outputs[0].data for cell in code_cells(found)[:3])
    assert first == {"text/plain": "run me"} and set(second) == {WIDGET}
    assert figure == code_cells(notebook)[2].outputs[0].data
    assert "widgets" not in found.metadata


def test_a_large_script_is_kept_once(tmp_path: Path) -> None:
    script, figure = "<script>" + "x" * 1_000_000, "<div>small</div>"
    shown = [new_output("display_data", data={"text/html": html}) for html in (script, figure)]
    cells = [new_code_cell("1", outputs=shown), new_code_cell("2", outputs=shown)]
    path = tmp_path / "run.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    make_static(path)
    first, second = nbformat.read(path, as_version=4).cells
    assert [output.data["text/html"] for output in first.outputs] == [script, figure]
    assert [output.data["text/html"] for output in second.outputs] == [figure]


def test_a_badge_goes_below_the_title_and_is_renewed(tmp_path: Path) -> None:
    page, path = tmp_path / "README.md", tmp_path / "01_first.ipynb"
    page.write_text("# Kit\n\nWords.\n", encoding="utf-8")
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Why?\n\nSo."), new_code_cell("1")]), path
    )
    for repository in ("old/place", "new/place"):
        put_badge(page, repository)
        put_badge(path, repository)
    logo = "[![Binder](https://mybinder.org/badge_logo.svg)]"
    lab = "https://mybinder.org/v2/gh/new/place/HEAD?urlpath=lab/tree/notebooks"
    expected = f"# Kit\n\n{logo}({lab}/00_quickstart.ipynb)\n\nWords.\n"
    assert page.read_text(encoding="utf-8") == expected
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source == f"# Why?\n\n{logo}({lab}/01_first.ipynb)\n\nSo."
    assert len(notebook.cells) == 2


@pytest.mark.parametrize(
    ("text", "repository", "says"),
    [("# Kit\n\nWords.", "place", "owner/name"), ("Words.", "a/b", "a title at the top")],
)
def test_a_badge_is_put_nowhere_else(text, repository, says, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        put_badge(page, repository)
    assert page.read_text(encoding="utf-8") == text


def test_refresh_keeps_of_a_widget_its_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ipynb",
        "import ipywidgets\nipywidgets.IntSlider(3)",
        "from IPython.display import display\n"
        "shown = display({'text/plain': 'once'}, raw=True, display_id=True)\n"
        "shown.update({'text/plain': 'twice'}, raw=True)",
    )
    refresh(path)
    notebook = nbformat.read(path, as_version=4)
    (slider,), (shown,) = (cell.outputs for cell in notebook.cells)
    assert slider.data == {"text/plain": "IntSlider(value=3)"}
    assert shown.data == {"text/plain": "twice"}
    assert "widgets" not in notebook.metadata


def test_refresh_keeps_the_old_notebook_when_a_cell_fails(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        refresh(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
