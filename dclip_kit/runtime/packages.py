"""Packages that come with an extra, and the sentence that names it where one is missing."""

import importlib


def require_packages(extra: str, *names: str, instead: str = "") -> None:
    """Imports packages that the default install leaves out.

    Args:
        extra: of the kit, which brings them.
        *names: of the packages, or of modules of theirs.
        instead: what else can be done, for the end of the error's sentence.

    Raises:
        ImportError: one is not installed, or does not load.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"Expected {' and '.join(names)}, but {name} does not load ({error}); run "
                f"pip install 'dclip-kit[{extra}]'{instead}."
            ) from error
