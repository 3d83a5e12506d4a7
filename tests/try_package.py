"""Tries the package as its users get it: `python tests/try_package.py dist/NAME.whl`.

Installs the wheel into a fresh environment outside the repository, imports what each extra brings,
and runs the commands and the Python of the README there, on drawn pictures and with short
trainings of the embedded CLIP. Needs an index of packages.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
LARGEST = 90_000_000  # bytes of a wheel

# By extra, what fails without it; the first needs none.
EXTRAS = {
    "": "import dclip_kit as kit; kit.load_clip('pocket'); from pathlib import Path; "
    "assert Path(kit.__file__).with_name('py.typed').is_file()",
    "detect": "import dclip_kit as kit; clip = kit.load_clip('pocket'); "
    "kit.choose_detector(kit.get_profile('pocket').regions, clip)",
    "data": "from dclip_kit.data.pictures import require_imagehash; require_imagehash()",
    "hub": "import datasets; from dclip_kit.data import hub",
    "sds": "import dclip_kit as kit; from dclip_kit.models.denoiser import load_denoiser; "
    "load_denoiser('pocket', kit.load_clip('pocket'))",
    "transformers": "from transformers import CLIPImageProcessorPil; "
    "from dclip_kit.models import hand_over_transformers",
    "onnx": "import onnx, onnxruntime, onnxscript; from transformers import CLIPTokenizer; "
    "from dclip_kit.models import hand_over_onnx",
    "lora": "import peft; from dclip_kit.models import adapters",
    "scale": "import pyarrow, ray; from dclip_kit.search import shards",
    "notebooks": "from dclip_kit import plots, widgets",
    "app": "from dclip_kit.widgets import app, host",
}
# The README is about photographs and weights that are downloaded; here the embedded ones must do.
PICTURES = """
from pathlib import Path
import dclip_kit as kit
from dclip_kit.data.pocket.world import load_captioned, load_labelled
kit.write_example(Path("photos"), 60)
Path("more_photos").mkdir()
for path in load_captioned("uncaptioned", 20).paths:
    (Path("more_photos") / path.name).write_bytes(path.read_bytes())
labelled = load_labelled("zero_shot", 4)
for path, label in zip(labelled.paths[:40], labelled.labels, strict=False):
    folder = Path("photos_by_class", labelled.class_names[label])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())
"""
SHORT = "--student.epochs 1 --region-teacher.epochs 1"


def readme_commands() -> list[str]:
    """The README's commands but for the app, which goes on until it is stopped."""
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^python -m (dclip_kit .+?)(?:\s+#.*)?$", text, re.MULTILINE)
    commands = [line for line in lines if not line.startswith("dclip_kit app")]
    commands = [re.sub(r"--profile base|ViT-B-32-quickgelu", _embedded, x) for x in commands]
    if len(commands) < 4:
        sys.exit(f"Expected four commands or more in {README}, got {len(commands)}.")
    return [f"{x} {SHORT}" if x.startswith("dclip_kit distill") else x for x in commands]


def _embedded(match: re.Match[str]) -> str:
    return "--profile pocket" if match[0].startswith("--") else "pocket"


def readme_python() -> str:
    """The README's Python, with a shorter training."""
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    changes = '"pocket", student={"epochs": 1}, region_teacher={"epochs": 1}, '
    return block.replace('"base", ', changes).replace("runs/mine", "runs/python")


def try_package(wheel: Path, extras: list[str]) -> None:
    """Installs and runs; whatever fails ends the program."""
    size = wheel.stat().st_size
    if size > LARGEST:
        sys.exit(f"Expected a wheel of at most {LARGEST:,} bytes, got {size:,}; leave assets out.")
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        environ |= {"DCLIP_CACHE": str(Path(folder, "cache")), "HF_HUB_OFFLINE": "1"}

        def run(*command: str | Path) -> None:
            print("+", *command, flush=True)
            subprocess.run(list(map(str, command)), cwd=folder, env=environ, check=True)

        subprocess.run([sys.executable, "-m", "venv", Path(folder, "venv")], check=True)
        for suffix, names in (("", [""]), (f"[{','.join(extras)}]", extras)):
            target = f"{wheel.resolve()}{suffix}"
            run(python, "-m", "pip", "install", "--quiet", "--no-compile", target)
            run(python, "-c", "\n".join(EXTRAS[name] for name in names))
        run(python, "-c", PICTURES)
        for command in readme_commands():
            run(python, "-m", *shlex.split(command))
        run(python, "-c", readme_python())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    known = [name for name in EXTRAS if name]
    parser.add_argument("--extras", nargs="+", choices=known, default=known)
    options = parser.parse_args()
    try_package(options.wheel, options.extras)


if __name__ == "__main__":
    main()
