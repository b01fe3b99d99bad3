"""Omniglot: real drawings where they are there, the splits and the errors everywhere."""

import functools
import io
import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from importlib import resources

import numpy as np
import pytest

from jmeta import data
from jmeta.configuration import SOURCES
from jmeta.data.omniglot import _ink

# TFDS and its dependencies warn on import and leave files for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def val_split(omniglot_files):
    return data.omniglot("val", data_dir=omniglot_files / "tfds")


@pytest.mark.parametrize("function", [data.prepare_omniglot, functools.partial(data.omniglot, "test")])
def test_an_address_is_no_folder_of_data(function):
    with pytest.raises(ValueError, match="data_dir is 'gs://bucket/data'; it must be a folder of this machine"):
        function(data_dir="gs://bucket/data")


def test_the_splits_are_1028_172_and_423_different_characters():
    listed = json.loads(resources.files("jmeta.data").joinpath("omniglot_splits.json").read_text())
    characters = {
        split: {(a, n) for alphabets in parts.values() for a, ns in alphabets.items() for n in ns}
        for split, parts in listed.items()
    }
    assert {split: len(of) for split, of in characters.items()} == {"train": 1028, "val": 172, "test": 423}
    assert len(set.union(*characters.values())) == 1623
    assert SOURCES["omniglot"].classes == 4 * len(characters["train"])


def test_turned_characters_are_classes_of_their_own(val_split):
    assert len(val_split) == 4 * 172
    assert (val_split.counts == 20).all()
    assert val_split.inputs.shape == (4 * 172 * 20, 28, 28, 1)
    alphabet, number, _ = val_split.names[0]
    images, starts = np.asarray(val_split.inputs), dict(zip(val_split.names, val_split.starts.tolist(), strict=True))
    of = {turned: images[starts[alphabet, number, turned] :][:20] for turned in (0, 90, 180, 270)}
    for turns in range(4):
        np.testing.assert_array_equal(of[90 * turns], np.rot90(of[0], turns, axes=(1, 2)))


@pytest.fixture
def two_characters(monkeypatch):
    """Two drawings each of two characters of Lake's background set, in one order and in the other."""
    rng = np.random.default_rng(0)
    drawings = [("Greek", number, rng.integers(0, 2, (105, 105), np.uint8)) for number in (2, 1, 2, 1)]
    module = sys.modules["jmeta.data.omniglot"]
    monkeypatch.setattr(module, "_find", lambda _: "a copy")

    def read_in(order, **options):
        monkeypatch.setattr(module, "_drawings", lambda _, split: drawings[::order] if split == "train" else [])
        return data.omniglot("background", **options)

    return drawings, read_in


def test_a_pixel_is_the_mean_of_the_area_that_it_covers(two_characters):
    drawings, read_in = two_characters
    # Each of 105 pixels is 4 x 4 of 420, of which each of 28 is 15 x 15.
    means = [np.kron(image, np.ones((4, 4))).reshape(28, 15, 28, 15).mean((1, 3)) for *_, image in drawings]
    found = np.asarray(read_in(1).inputs)[..., 0].astype(int)
    expected = np.round(255 * np.stack(means))
    assert all(np.abs(found - one).max((1, 2)).min() <= 1 for one in expected)  # to rounding, each drawing is there


def test_lakes_parts_are_not_turned_unless_asked(two_characters):
    read_in = two_characters[1]
    as_they_are, turned = read_in(1), read_in(1, rotations=(90,))
    assert as_they_are.names == (("Greek", 1, 0), ("Greek", 2, 0))
    assert turned.names == (("Greek", 1, 90), ("Greek", 2, 90))
    images, expected = turned.inputs, np.rot90(as_they_are.inputs, axes=(1, 2))
    assert {image.tobytes() for image in images} == {image.tobytes() for image in expected}


def test_a_table_does_not_depend_on_the_order_in_which_drawings_are_read(two_characters):
    one, other = (two_characters[1](order) for order in (1, -1))
    assert one.names == other.names
    np.testing.assert_array_equal(one.inputs, other.inputs)


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
def test_lakes_evaluation_part_has_659_characters(omniglot_files):
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
        ("test", {"rotations": 90}, "rotations is 90; they must be multiples of 90 degrees"),
        ("test", {"rotations": (0.0, 90.0)}, r"rotations is \(0.0, 90.0\)"),
        (["test"], {}, r"split is \['test'\]"),
    ],
)
def test_refuses_splits_and_rotations_there_are_not(split, options, message):
    with pytest.raises(ValueError, match=message):
        data.omniglot(split, **options)


def test_a_missing_archive_is_named_with_where_it_was_looked_for(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError, match=f"images_background.zip.*not found in {tmp_path}/none"):
        data.omniglot("test", data_dir=tmp_path, archives=tmp_path / "none")


def cut_short(whole):
    return whole[: len(whole) // 2]


def overwritten(whole):
    at = whole.index(b"a drawing")
    return whole[:at] + b"something" + whole[at + 9 :]


def of_something_else(_):
    return archive_of("a.txt")


def archive_of(name):
    """The bytes of a zip file of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "a drawing")
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "is not a complete zip file"),
        (overwritten, "is damaged at a/b/character01/1.png"),
        (of_something_else, "holds no drawings"),
    ],
)
def test_an_archive_that_is_damaged_or_of_something_else_is_named(tmp_path, damage, message):
    pytest.importorskip("tensorflow_datasets")
    from jmeta.data.omniglot_builder import ARCHIVES

    whole = archive_of("a/b/character01/1.png")
    for name in ARCHIVES.values():
        (tmp_path / name).write_bytes(damage(whole) if name == ARCHIVES["test"] else whole)
    with pytest.raises(ValueError, match=f"{tmp_path}/{ARCHIVES['test']} {message}; get it from"):
        data.omniglot("test", data_dir=tmp_path, archives=tmp_path)


def info_cut_short(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text()[:10])


def shard_cut_short(folder):
    path = next(folder.glob("*train*"))
    path.write_bytes(path.read_bytes()[:1000])


def shard_missing(folder):
    next(folder.glob("*train*")).unlink()


@pytest.mark.parametrize("damage", [info_cut_short, shard_cut_short, shard_missing])
def test_a_copy_that_is_damaged_is_named_with_what_to_do(omniglot_files, tmp_path, damage):
    prepared = next((omniglot_files / "tfds").glob("omniglot*/*/dataset_info.json")).parent
    folder = tmp_path / "omniglot" / prepared.name
    shutil.copytree(prepared, folder, copy_function=shutil.copyfile)
    damage(folder)
    with pytest.raises(ValueError, match=rf"the copy of Omniglot in {folder} cannot be read .*; remove that folder"):
        data.omniglot("background", data_dir=tmp_path)


def test_another_data_set_is_not_taken_for_omniglot(tmp_path):
    folder = tmp_path / "omniglot_mine" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"images_background\.zip"):
        data.omniglot("test", data_dir=tmp_path, archives=tmp_path / "none")


def test_without_its_extra_omniglot_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '.\[tfds\]'"):
        data.omniglot("test", data_dir=tmp_path)


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
