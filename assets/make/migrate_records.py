"""Updates studies' records to today's settings: `python -m assets.make.migrate_records [STUDIES]`.

After removing a setting from dclip_kit.config, add it to `REMOVED` and run this once. It changes no
measured figure.
"""

import sys
from pathlib import Path
from typing import Any

from dclip_kit.features.store import digest_record
from dclip_kit.runtime.files import asset_path, read_record, write_record

# By part and name, with the value that all later trainings have used.
REMOVED = {
    ("student", "hard_negatives"): False,
    ("student", "soup"): 1,
    ("teacher", "caption_free"): False,
}


def migrate_records(folder: Path) -> list[Path]:
    """Drops removed settings from the records of studies, and renews the settings' digests.

    A record whose value differs from `REMOVED` keeps all its settings, since they describe that
    training; its arm has the recipe "recorded" in the study.

    Args:
        folder: of the studies, with a folder of records for each.

    Returns:
        The rewritten files; those with today's settings are left unchanged.
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
            part: {name: setting for name, setting in value.items() if (part, name) not in REMOVED}
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
