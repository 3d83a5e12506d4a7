"""What of a widget runs in the page: plain JavaScript and CSS beside the Python."""

from importlib import resources


def read_page(name: str) -> tuple[str, str]:
    """A widget's script and styles, each behind those that all widgets share."""
    folder = resources.files(__package__)
    script, styles = (
        "\n".join(folder.joinpath(f"{part}.{ending}").read_text("utf-8") for part in parts)
        for ending, parts in (("js", ("elements", name)), ("css", ("elements", name)))
    )
    return script, styles
