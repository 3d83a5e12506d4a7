"""Brings studies' records to today's settings: `python -m assets.make.migrate_records [STUDIES]`.

Whoever takes a setting out of dclip_kit.config adds it to `REMOVED` and runs this once. It changes
nothing that was measured.
"""

import sys
from pathlib import Path
from typing import Any

from dclip_kit.features.store import digest_record
from dclip_kit.runtime.files import asset_path, read_record, write_record

# By part and name, with the value that all trainings have had since.
REMOVED = {
    ("student", "hard_negatives"): False,
    ("student", "soup"): 1,
    ("teacher", "caption_free"): False,
}


def migrate_records(folder: Path) -> list[Path]:
    """Drops removed settings from the records of studies, and digests what remains anew.

    A record with another value than `REMOVED` says keeps all its settings, since they tell what
    that training was; its arm has the recipe "recorded" in the study.

    Args:
        folder: the studies, with the records of each in a folder of its own.

    Returns:
        The files that were rewritten; those with today's settings are left as they are.
    """
    changed = []
    for path in sorted(folder.glob("*/*.json")):
        before = read_record(path, dict)
        settings = _drop_removed(before["settings"])
        after = before | {"settings_digest": digest_record(settings), "settings": settings}
        if after != before:
            write_record(after, path)
            changed.append(path)
    return changed


def _drop_removed(settings: dict[str, Any]) -> dict[str, Any]:
    profile = settings["profile"]
    if not profile:  # the untouched CLIP
        return settings
    if any(profile[part].get(name, today) != today for (part, name), today in REMOVED.items()):
        return settings
    return settings | {
        "profile": {
            part: {name: x for name, x in value.items() if (part, name) not in REMOVED}
            if isinstance(value, dict)
            else value
            for part, value in profile.items()
        }
    }


def main(folder: str = "") -> None:
    """Migrates the committed studies, or those of a folder."""
    changed = migrate_records(Path(folder) if folder else asset_path("studies"))
    print(f"Rewrote {len(changed)} record{'s' * (len(changed) != 1)}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
