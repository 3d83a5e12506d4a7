"""The one entry: which format data has is seen, or the known ones are listed."""

from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.config import FORMATS
from dclip_kit.data.formats import (
    READERS,
    find_formats,
    read_captioned,
    recognise_format,
)
from tests.data.reading import read_files
from tests.data.test_all_formats import FORMATS as WRITERS


def write_folder(folder: Path, *formats: str) -> Path:
    """A picture with a caption in each of these formats; the folder to read it from."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    for format in formats:
        source = WRITERS[format][1](folder, [("a.png", "A cat.")])
    return source


def test_only_newlines_part_captions(tmp_path) -> None:
    """Not what else Unicode takes for the end of a line, as in text pasted from pages."""
    folder = write_folder(tmp_path, "files")
    text = "A cat\u2028on a mat.\r\nA\x0bcat.\n\nA\x85pet."
    (folder / "a.txt").write_bytes(text.encode())
    found = read_files(folder)
    assert len(found.dataset.texts) == 3, found.dataset.texts


def test_a_coco_root_is_recognised_by_its_annotations(tmp_path) -> None:
    write_folder(tmp_path / "annotations", "coco")
    assert recognise_format(tmp_path) == "coco"


def test_an_annotation_file_has_the_say_over_texts_beside_pictures(tmp_path) -> None:
    assert recognise_format(write_folder(tmp_path, "csv", "files")) == "csv"


STRAYS = {
    "results.csv": "epoch,loss\n1,0.5\n",
    "licenses.tsv": "a.jpg\tA. Author\thttp://a/licence\n",
    "dataset_description.json": '{"Name": "mine"}',
    "captions_notes.json": "{}",
    "captions.txt": "notes on captions",
}


@pytest.mark.parametrize("format", ["files", "karpathy"])
def test_a_file_that_is_only_called_like_annotations_is_passed_by(tmp_path, format) -> None:
    folder = write_folder(tmp_path, format)
    for name, content in STRAYS.items():
        (folder / name).write_text(content)
    assert {*find_formats(folder)} == {format}
    assert read_captioned(folder).dataset.texts == ["A cat."]


def test_a_table_with_commas_may_be_called_txt(tmp_path) -> None:
    write_folder(tmp_path, "csv")
    table = tmp_path / "captions.csv"
    table = table.rename(tmp_path / "captions.txt")
    table.write_text("file_name,text\na.jpg,A cat.\n")
    for path in (tmp_path, table):
        assert recognise_format(path) == "csv"


def test_the_formats_of_a_folder_are_all_named_with_their_files(tmp_path) -> None:
    assert find_formats(tmp_path) == {}
    write_folder(tmp_path / "one", "files")
    assert find_formats(tmp_path / "one") == {"files": tmp_path / "one"}
    both = write_folder(tmp_path / "both", "csv", "karpathy")
    expected = {"csv": both / "captions.csv", "karpathy": both / "dataset_mine.json"}
    assert find_formats(both) == expected


def test_what_is_not_recognised_lists_the_known_formats(tmp_path) -> None:
    known = "csv, jsonl, files, karpathy, coco, flickr, conceptual, shards, datasets"
    assert ", ".join(FORMATS) == known
    with pytest.raises(ValueError, match=r"found none that is recognised; say .*--format") as error:
        read_captioned(tmp_path)
    assert all(f"{format} ({needs})" in str(error.value) for format, needs in FORMATS.items())
    write_folder(tmp_path, "csv", "karpathy")
    with pytest.raises(
        ValueError, match=r"found several: csv \(captions.csv\), karpathy \(dat.*--format"
    ):
        read_captioned(tmp_path)
    assert read_captioned(tmp_path, format="csv").dataset.texts == ["A cat."]
    with pytest.raises(ValueError, match=rf"a format of {known}, manifest, got 'parquet'"):
        read_captioned(tmp_path, format="parquet")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="found none that is recognised"):
        recognise_format(tmp_path / "a.json")


def test_nothing_at_the_path_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Expected a file or folder at .*none, found nothing"):
        read_captioned(tmp_path / "none")


@pytest.mark.parametrize("format", READERS)
def test_nothing_at_the_path_names_it_whatever_the_format(tmp_path, format) -> None:
    with pytest.raises((OSError, ValueError), match="none"):
        read_captioned(tmp_path / "none", format=format)


@pytest.mark.parametrize("format", ["files", "shards"])
def test_pictures_that_are_their_annotations_neighbours_have_no_other_folder(
    tmp_path, format
) -> None:
    folder = write_folder(tmp_path / "data", format)
    with pytest.raises(ValueError, match=r"leave --images \(images= in Python\) out"):
        read_captioned(folder, tmp_path, format)


def test_pictures_in_no_folder_are_an_error(tmp_path) -> None:
    folder = write_folder(tmp_path, "csv")
    for images in (tmp_path / "none", tmp_path / "a.png"):
        with pytest.raises(ValueError, match="Expected a folder of pictures at"):
            read_captioned(folder, images)


def test_nothing_usable_is_an_error_with_a_reason(tmp_path) -> None:
    folder = write_folder(tmp_path, "csv")
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none was left \(.*, 1 unusable .*; the first, .*a\.png"):
        read_captioned(folder)
    assert len(read_captioned(folder, checks="names").dataset) == 1


def test_the_split_reaches_the_reader(tmp_path) -> None:
    file = write_folder(tmp_path, "karpathy") / "dataset_mine.json"
    file.write_text(file.read_text().replace("train", "val"))
    assert read_captioned(tmp_path, split="val").dataset.texts == ["A cat."]


def test_json_of_any_spacing_and_with_other_keys_is_recognised(tmp_path) -> None:
    for format in ("coco", "karpathy"):
        folder = write_folder(tmp_path / format, format)
        (file,) = folder.rglob("*.json")
        text = file.read_text().replace('":', '" :')
        file.write_text(text.replace("{", '{"features" : 3, ', 1))
        assert recognise_format(folder) == recognise_format(file, folder) == format


def test_the_columns_of_a_table_say_what_it_is_and_not_a_caption(tmp_path) -> None:
    folder = write_folder(tmp_path, "csv")
    table = folder / "captions.csv"
    table.write_text("image,caption\na.png,a score of 3|0| on a sign\n")
    assert recognise_format(folder) == recognise_format(table) == "csv"


def test_a_text_of_one_endless_line_is_no_table(tmp_path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a" * 200_000)
    with pytest.raises(ValueError, match="none that is recognised"):
        recognise_format(file)
