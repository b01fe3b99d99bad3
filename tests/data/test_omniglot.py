"""Omniglot: real drawings where they are there, the splits and the errors everywhere."""

import json
import subprocess
import sys
import warnings
from importlib import resources

import numpy as np
import pytest

from jmeta import data
from jmeta.data.omniglot import _ink

# TFDS and its dependencies warn on import and leave files for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def val_split(omniglot_files):
    return data.omniglot("val", data_dir=omniglot_files / "tfds")


def test_the_splits_are_1028_172_and_423_different_characters():
    listed = json.loads(resources.files("jmeta.data").joinpath("omniglot_splits.json").read_text())
    characters = {
        split: {(a, n) for alphabets in parts.values() for a, ns in alphabets.items() for n in ns}
        for split, parts in listed.items()
    }
    assert {split: len(of) for split, of in characters.items()} == {"train": 1028, "val": 172, "test": 423}
    assert len(set.union(*characters.values())) == 1623


def test_turned_characters_are_classes_of_their_own(val_split):
    assert len(val_split) == 4 * 172
    assert (val_split.counts == 20).all()
    assert val_split.inputs.shape == (4 * 172 * 20, 28, 28, 1)
    of = {name: i for i, name in enumerate(val_split.names)}
    alphabet, number, _ = val_split.names[0]
    upright, turned = (
        np.asarray(val_split.inputs[val_split.starts[of[alphabet, number, degrees]] :][:20]) for degrees in (0, 90)
    )
    np.testing.assert_array_equal(turned, np.rot90(upright, axes=(1, 2)))


@pytest.mark.parametrize("paper", [1, 255])
def test_ink_is_what_a_png_has_as_zero_whoever_reads_it(paper):
    image = np.full((105, 105, 1), paper, np.uint8)
    image[3, 4] = 0
    ink = _ink(image)
    assert ink.sum() == ink[3, 4] == 1


def test_a_copy_that_is_prepared_is_found_without_a_network(omniglot_files, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asks the network"))
    builder = data.prepare_omniglot(data_dir=omniglot_files / "tfds")
    assert builder.info.splits["train"].num_examples > 0


def test_ink_is_bright_and_scarce(val_split):
    assert val_split.inputs.dtype == np.uint8
    assert 10 < np.asarray(val_split.inputs).mean() < 40


@pytest.mark.long
@pytest.mark.parametrize(("split", "characters"), [("train", 1028), ("test", 423)])
def test_every_character_of_a_split_has_twenty_drawings_in_four_directions(omniglot_files, split, characters):
    table = data.omniglot(split, data_dir=omniglot_files / "tfds")
    assert len(table) == 4 * characters
    assert len(table.inputs) == 4 * characters * 20


@pytest.mark.long
def test_lakes_parts_are_not_turned(omniglot_files):
    table = data.omniglot("evaluation", data_dir=omniglot_files / "tfds")
    assert len(table) == 659
    assert len(table.inputs) == 13180


@pytest.mark.long
def test_all_32460_drawings_are_the_same_from_the_archives(omniglot_files, tmp_path):
    for split, number in (("background", 19280), ("evaluation", 13180)):
        prepared = data.omniglot(split, data_dir=tmp_path, archives=omniglot_files / "archives")
        existing = data.omniglot(split, data_dir=omniglot_files / "tfds")
        assert prepared.names == existing.names
        assert len(existing.inputs) == number
        np.testing.assert_array_equal(prepared.inputs, existing.inputs)


@pytest.mark.long
def test_tensorflow_is_never_imported(omniglot_files):
    program = (
        "import sys; from jmeta import data;"
        f"data.omniglot('evaluation', data_dir={str(omniglot_files / 'tfds')!r});"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("testing", {}, "split is 'testing'; it must be one of train, val, test"),
        ("test", {"rotations": (45,)}, r"rotations is \(45,\); they must be multiples of 90 degrees"),
        ("test", {"rotations": (0, 360)}, "no two alike"),
        ("test", {"rotations": ()}, "at least one"),
    ],
)
def test_refuses_splits_and_rotations_there_are_not(split, options, message):
    with pytest.raises(ValueError, match=message):
        data.omniglot(split, **options)


def test_a_missing_archive_is_named_with_where_it_was_looked_for(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError, match=f"images_background.zip.*not found in {tmp_path}/none"):
        data.omniglot("test", data_dir=tmp_path, archives=tmp_path / "none")


def test_an_archive_that_is_cut_short_is_named(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from jmeta.data.omniglot_builder import ARCHIVES

    for name in ARCHIVES.values():
        (tmp_path / name).write_bytes(b"PK, and no more")
    with pytest.raises(ValueError, match=rf"{tmp_path}/images_background.zip is not a whole zip file"):
        data.omniglot("test", data_dir=tmp_path, archives=tmp_path)


def test_a_failed_download_says_what_gets_the_data(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with (
        warnings.catch_warnings(),
        pytest.raises(FileNotFoundError, match="run: jmeta data prepare omniglot") as caught,
    ):
        data.omniglot("test", data_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "no network" in str(caught.value)
