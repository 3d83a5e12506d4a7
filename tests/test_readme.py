"""The README's figures are those of the report that a run wrote."""

import json
import re
from pathlib import Path

from dclip_kit.notebooks import format_report

ROOT = Path(__file__).parent.parent


def test_table_is_printed_from_the_report() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(
        r"<!-- report: python -m dclip_kit\.notebooks table (\S+) -->\n(.*)<!-- /report -->",
        readme,
        re.DOTALL,
    )
    assert block, "Expected the README to hold a block made from a report, found none."
    report = json.loads((ROOT / block[1]).read_text(encoding="utf-8"))
    assert report["trained_in_this_run"] is True
    assert block[2].strip() == format_report(report).strip()


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert pictures, "Expected the README to show a picture, found none."
    missing = [path for path in pictures if not (ROOT / path).is_file()]
    assert not missing
