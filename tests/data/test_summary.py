"""What a person reads of a report; the command line prints it, and so does a notebook."""

from dclip_kit.data.summary import summarize


def test_a_report_is_summed_up() -> None:
    report = {
        "format": "csv",
        "pictures": {"usable": 1200, "unusable": [{"path": "a", "reason": "gone"}] * 12},
        "captions": {"usable": 5, "empty": 1, "truncated": 2},
        "splits": {"from": "folders", "train": 1000, "val": 100, "test": 100},
        "linked": 3,
        "duplicates": [["a", "b\x1b"]],
        "leaks": [{"picture": "a", "evaluation": "b", "by": "path"}],
    }
    lines = list(summarize(report, compared=True))
    assert lines[:3] == ["Format: csv", "Pictures: 1,200 usable, 12 unusable", "  a: gone"]
    assert lines[12] == "  … and 2 more; --json FILE has all"
    assert lines[-6:] == [
        "Splits, from folders: train 1,000, val 100, test 100",
        "Links out of the folder were followed to 3 pictures",
        "Duplicates: 1 groups of equal pictures",
        "  a = b\\x1b",
        "Leaks: 1 pictures that are evaluation pictures too",
        "  a is b, path",
    ]
    plain = report | {"linked": 0, "splits": report["splits"] | {"from": "digest"}}
    said = list(summarize(plain, compared=False))
    assert "Splits, from a digest of the files: train 1,000, val 100, test 100" in said
    assert not any("Links" in line for line in said)
    assert not any("Leaks" in line for line in summarize(report, compared=False))
