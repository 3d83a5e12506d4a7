"""The notebooks' exercises with their stubs and with their solutions filled in."""

import ast
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dclip_kit import exercises

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOLUTION = r"<details><summary>Solution</summary>\n\n```python\n(.*?)```\n\n</details>"


def read_exercises() -> list[Any]:
    """Each exercise: its stub, the solution that stands in the next cell, and its check."""
    found = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell, following in itertools.pairwise(cells):
            if cell["cell_type"] == "code" and "exercise" in cell["metadata"].get("tags", []):
                stub, solution = "".join(cell["source"]), "".join(following["source"])
                check = re.search(r"exercises\.(check_\w+)\(\w+\)$", stub)[1]
                folded = re.search(SOLUTION, solution, re.S)[1]
                found.append(pytest.param(stub, folded, check, id=f"{path.stem[:2]}-{check}"))
    return found


EXERCISES = read_exercises()


def test_every_exercise_is_in_one_notebook() -> None:
    checks = [each.values[2] for each in EXERCISES]
    assert sorted(checks) == exercises.__all__
    for number in ("01", "02", "03", "04", "05"):
        assert sum(each.id.startswith(number) for each in EXERCISES) == 2
    for number in ("07", "08", "09"):
        assert sum(each.id.startswith(number) for each in EXERCISES) == 1


@pytest.mark.parametrize(("stub", "solution", "check"), EXERCISES)
def test_a_stub_says_not_yet_and_its_solution_is_right(stub, solution, check, capsys) -> None:
    space: dict[str, Any] = {"exercises": exercises}
    exec("import torch\n" + stub, space)
    assert capsys.readouterr().out == "Not yet. The function returns nothing so far.\n"
    (written,) = ast.parse(stub).body[:-1]
    (solved,) = ast.parse(solution).body
    assert solved.name == written.name and ast.dump(solved.args) == ast.dump(written.args)
    exec(f"{solution}\nexercises.{check}({written.name})", space)
    assert capsys.readouterr().out == "Right, on 20 random inputs.\n"
