"""Trains the pocket's teacher and arms into assets/: `python -m assets.make.pocket_arms`."""

from dclip_kit.config import get_profile
from dclip_kit.evaluation.experiment import train_all
from dclip_kit.evaluation.profile_data import load_data
from dclip_kit.models.clip import load_clip
from dclip_kit.runtime.files import asset_path


def main() -> None:
    """Trains what the pocket profile says."""
    profile = get_profile("pocket")
    folder = asset_path("sprites").parent / "pocket_arms"
    train_all(profile, load_clip(profile.clip), load_data(profile), folder)


if __name__ == "__main__":
    main()
