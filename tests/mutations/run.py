"""Runs the tests on small mutations of the kit, and shows which test finds each: one should.

`python tests/mutations/run.py [NAME ...] [--likely] [--out runs/mutations]` applies each NAME.patch
beside this file to a copy of the working tree, and runs first the test files that the patch names,
then, if they pass, all tests (not with `--likely`). OUT/NAME.json has the result, which holds until
the patch, the kit or a test changes; so a run that was stopped goes on.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OPTIONS = ["-x", "-q", "-rfE", "-p", "no:cacheprovider", "--ignore", "tests/browser"]
OPTIONS += ["-m", "not slow"]  # what `make test` runs of the tests in Python


def copy_tree(copy: Path) -> bytes:
    """Copies what git does not ignore; returns a digest of the kit, its tests and its settings."""
    command, digest = ["git", "ls-files", "-co", "--exclude-standard", "-z"], hashlib.sha256()
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in sorted(filter(None, listed.split("\0"))):
        if (ROOT / name).is_file():  # else deleted, and still in git's list
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
            tested = name.startswith(("dclip_kit/", "tests/")) or name == "pyproject.toml"
            if tested and not name.startswith("tests/mutations/"):  # other patches matter to none
                digest.update(f"{name}\0".encode() + (copy / name).read_bytes())
    return digest.digest()


def find_failure(copy: Path, *arguments: str) -> str | None:
    """The first test that fails in a copy; None if all pass."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, *arguments]
    variables = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True)
    lines = [x for x in done.stdout.splitlines() if x.startswith(("FAILED ", "ERROR "))]
    failed = [line.partition(" ")[2].partition(" - ")[0] for line in lines if "::" in line]
    # With several processes, pytest says that -x has interrupted it: 2.
    if done.returncode not in (0, 1, 2) or bool(failed) != bool(done.returncode):
        output = f"{done.stdout}{done.stderr}"[-2000:]
        sys.exit(f"Expected tests that pass or fail, but pytest broke off:\n{output}")
    return failed[0] if failed else None


def try_mutation(patch: Path, likely: bool, file: Path) -> dict[str, Any]:
    """Runs the tests on a mutation, unless a file has their result; writes it there."""
    lines = patch.read_text(encoding="utf-8").splitlines()
    subject, tests = (lines[i].partition(": ")[2] for i in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "copy"
        digest = hashlib.sha256(copy_tree(copy) + patch.read_bytes()).hexdigest()
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if known.get("digest") == digest and (known["found"] or likely or known["stage"] == "all"):
            return known
        # Below another repository, git would leave out what that one has not.
        ceiling = os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)}
        subprocess.run(["git", "apply", patch], cwd=copy, env=ceiling, check=True)
        began, stage, by = time.monotonic(), "likely", find_failure(copy, *tests.split())
        if by is None and not likely:
            stage, by = "all", find_failure(copy, "--numprocesses", "2", "tests")
    seconds = round(time.monotonic() - began, 1)
    result = {"subject": subject, "found": by is not None, "by": by, "stage": stage}
    result |= {"seconds": seconds, "digest": digest}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main() -> None:
    """Runs all patches or those named, and prints a table; the exit status is 1 if any survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if left out")
    parser.add_argument("--likely", action="store_true", help="only the tests that a patch names")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutations")
    options = parser.parse_args()
    names = options.names or sorted(path.stem for path in HERE.glob("*.patch"))
    patches = [HERE / f"{name}.patch" for name in names]
    for patch in patches:
        check = ["git", "apply", "--check", str(patch)]
        if subprocess.run(check, cwd=ROOT, stderr=subprocess.DEVNULL).returncode:
            sys.exit(f"Expected a patch that applies to this tree, got {patch}; make it anew.")
    results = {}
    for name, patch in zip(names, patches, strict=True):
        results[name] = try_mutation(patch, options.likely, options.out / f"{name}.json")
        print(f"{name}: {results[name]['by'] or 'not found'}", file=sys.stderr, flush=True)
    print("| mutation | found by | stage | seconds |\n| --- | --- | --- | ---: |")
    for name, result in results.items():
        print(f"| {name} | {result['by'] or '–'} | {result['stage']} | {result['seconds']} |")
    sys.exit(not all(result["found"] for result in results.values()))


if __name__ == "__main__":
    main()
