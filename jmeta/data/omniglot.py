"""Omniglot (Lake et al., 2015): 1,623 handwritten characters, each drawn by 20 people."""

import contextlib
import dataclasses
import importlib.util
import json
import operator
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jmeta.data.table import class_table, ClassTable

SIZE = 28
CHUNK = 4096  # images reduced at once, which bounds the memory; our choice
PARTS = {"background": "train", "evaluation": "test"}  # Lake's names and TFDS's
VINYALS_SPLITS = ("train", "val", "test")
COPIES = ("omniglot", "omniglot_drawings")  # data sets that can be read: TFDS's and ours
COMMAND = "jmeta data prepare omniglot"


def omniglot(
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    archives: str | os.PathLike | None = None,
    rotations: Sequence[int] | None = None,
) -> ClassTable:
    """Omniglot as a table of 28 x 28 uint8 images, ink 255 on paper 0.

    Reads a copy that TensorFlow Datasets has prepared, either its own `omniglot` or the
    one `prepare_omniglot` makes, and prepares one if there is none. Needs the extra
    `tfds`, but not TensorFlow. Drawings are reduced from 105 x 105 by averaging areas.

    Args:
        split: `"train"`, `"val"` or `"test"`, the 1028/172/423 characters of
            Vinyals et al., 2016; or Lake's `"background"` or `"evaluation"`,
            964/659.
        data_dir: the folder of TFDS's data sets; None for `$TFDS_DATA_DIR`, or
            else ~/tensorflow_datasets.
        archives: a folder with the four official archives, to prepare from instead of
            downloading; not read if there is already a copy.
        rotations: degrees by which characters are rotated; each rotation of a character
            is a class of its own. None for 0, 90, 180, 270 on the splits of Vinyals et
            al. (as Snell et al., 2017: 4112/688/1692 classes), and 0 on Lake's.

    Returns:
        A `ClassTable`; names are (alphabet, character from 1, degrees).

    Raises:
        ValueError: for an unknown split; for rotations that are empty, repeated or not
            multiples of 90; for a `data_dir` that is no local folder but an address;
            for a damaged copy or archive.
        FileNotFoundError: if the data is missing and cannot be obtained; the error
            names what is missing, where it was looked for, and how to get it.
        ModuleNotFoundError: without the extra `tfds`.
    """
    characters = _characters(split)
    if rotations is None:
        rotations = (0, 90, 180, 270) if split in VINYALS_SPLITS else (0,)
    rotations = _checked_rotations(rotations)
    data_dir = _data_dir(data_dir)
    builder = _find(data_dir) or prepare_omniglot(data_dir=data_dir, archives=archives)
    images, labels = [], []
    for part, name in PARTS.items():
        if split in PARTS and split != part:
            continue
        for alphabet, number, image in _drawings(builder, name):
            if characters is None or (part, alphabet, number) in characters:
                images.append(image)
                labels.append((alphabet, number))
    return _table(np.stack(images), labels, rotations)


def prepare_omniglot(*, data_dir: str | os.PathLike | None = None, archives: str | os.PathLike | None = None) -> Any:
    """Prepares Omniglot in `data_dir` and returns its TFDS builder.

    Args:
        data_dir: as for `omniglot`.
        archives: a folder with the four official archives; None downloads them and
            verifies their checksums.

    Returns:
        The builder, a `tfds.core.DatasetBuilder`.

    Raises:
        FileNotFoundError: if an archive is missing, or the download fails.
        ModuleNotFoundError: without the extra `tfds`.
        ValueError: if an archive is damaged or holds no drawings, or `data_dir` is an address.
    """
    data_dir = _data_dir(data_dir)
    _require_tfds()
    from jmeta.data.omniglot_builder import ARCHIVES, OmniglotDrawings, URL

    if archives is None and (found := _find(data_dir)) is not None:
        return found
    builder = OmniglotDrawings(data_dir=data_dir, file_format="array_record")
    if archives is None:
        _download_and_prepare(builder, data_dir, URL + ARCHIVES["train"])
        return builder
    builder.archives = Path(archives).expanduser()
    missing = [name for name in ARCHIVES.values() if not (builder.archives / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} not found in {builder.archives}; get them from {URL}.")
    for name in ARCHIVES.values():
        if reason := _what_is_wrong(builder.archives / name):
            raise ValueError(f"{builder.archives / name} {reason}; get it from {URL}.")
    builder.download_and_prepare()
    return builder


def _checked_rotations(rotations):
    try:
        found = tuple(map(operator.index, rotations))
        is_right = found and not any(degrees % 90 for degrees in found)
    except TypeError:  # not a sequence of integers
        is_right = False
    if not is_right or len({degrees % 360 for degrees in found}) < len(found):
        raise ValueError(
            f"rotations is {rotations!r}; they must be multiples of 90 degrees, at least one and no two alike."
        )
    return found


def _what_is_wrong(archive):
    """Why an archive cannot be read, or None."""
    try:
        with zipfile.ZipFile(archive) as opened:
            if (damaged := opened.testzip()) is not None:
                return f"is damaged at {damaged}"
            return None if any(name.endswith(".png") for name in opened.namelist()) else "holds no drawings"
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return "is not a complete zip file"


def _download_and_prepare(builder, data_dir, url):
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(force_checksums_validation=True)
    try:
        # TFDS tries for minutes before it gives up: report a missing network at once.
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # a network fails in many ways; the cause is kept
        raise FileNotFoundError(
            f"Omniglot is not in {data_dir} and could not be downloaded from {url.rpartition('/')[0]}/ "
            f"({type(error).__name__}: {error}). With the four archives in a folder, "
            f"run: {COMMAND} --data-dir {data_dir} --archives FOLDER"
        ) from error


def _characters(split):
    """The (part, alphabet, character) of a split of Vinyals et al.; None for one of Lake's parts."""
    if split not in (*VINYALS_SPLITS, *PARTS):
        raise ValueError(f"split is {split!r}; it must be one of {', '.join((*VINYALS_SPLITS, *PARTS))}.")
    if split in PARTS:
        return None
    listed = json.loads(resources.files("jmeta.data").joinpath("omniglot_splits.json").read_text())[split]
    return {(part, alphabet, n) for part, alphabets in listed.items() for alphabet, ns in alphabets.items() for n in ns}


def _data_dir(data_dir):
    found = str(data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    if "://" in found:
        raise ValueError(f"data_dir is {found!r}; it must be a folder of this machine, not an address.")
    return Path(found).expanduser()


def _require_tfds():
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ModuleNotFoundError(
            "Omniglot is read by TensorFlow Datasets, which is missing; install jmeta with its extra tfds: in a clone, "
            "pip install '.[tfds]'."
        )


def _find(data_dir):
    """The builder of a prepared copy in `data_dir` that can be read without TensorFlow, or None."""
    infos = [path for name in COPIES for path in data_dir.glob(f"{name}/*/dataset_info.json")]
    for path in sorted(infos, reverse=True):  # ours first, as its name is last, and the newest version
        with _names_damage(path.parent):
            if json.loads(path.read_text()).get("fileFormat") == "array_record":
                _require_tfds()
                import tensorflow_datasets as tfds

                return tfds.builder_from_directory(path.parent)
    return None


@contextlib.contextmanager
def _names_damage(folder):
    """Makes errors raised while a prepared copy is read say which copy it is, and what to do."""
    try:
        yield
    except (ImportError, MemoryError, OSError):  # the machine's fault, not the copy's
        raise
    except Exception as error:  # of TFDS's many file readers; the cause is kept
        raise ValueError(
            f"the copy of Omniglot in {folder} cannot be read ({type(error).__name__}: {error}); remove that folder "
            f"and run: {COMMAND} --data-dir {Path(folder).parents[1]}"
        ) from error


def _drawings(builder, split) -> Iterator[tuple[str, int, np.ndarray]]:
    """Alphabet, character from 1, and image [105, 105] of 0 and 1, ink 1, of every drawing."""
    with _names_damage(builder.data_dir):
        alphabets = builder.info.features["alphabet"]
        for example in builder.as_data_source(split=split):
            alphabet, image = example["alphabet"], example["image"]
            alphabet = alphabets.int2str(alphabet) if hasattr(alphabets, "int2str") else alphabet.decode()
            yield alphabet, int(example["alphabet_char_id"]) + 1, _ink(image)


def _ink(image):
    """[105, 105] of 0 and 1 from a one-bit PNG, whose paper is 1, or 255 if TFDS has read it by OpenCV."""
    return (image.reshape(105, 105, -1)[..., 0] == 0).astype(np.uint8)


def _table(images, labels, rotations):
    images = _reduced(images)
    # Sorted by class and then by content, so that every copy of the data gives the same table.
    order = sorted(range(len(labels)), key=lambda i: (labels[i], images[i].tobytes()))
    images, labels = images[order], [labels[i] for i in order]
    turned = np.concatenate([np.rot90(images, degrees // 90, axes=(1, 2)) for degrees in rotations])
    names = [(*label, degrees) for degrees in rotations for label in labels]
    numbers = {name: i for i, name in enumerate(sorted(set(names)))}
    table = class_table(turned[..., None], [numbers[name] for name in names])
    return dataclasses.replace(table, names=tuple(numbers))


def _reduced(images):
    """[M, 105, 105] of 0 and 1 -> [M, 28, 28] uint8, where each pixel is the mean of the area it covers."""
    edges = np.arange(SIZE + 1) * images.shape[1] / SIZE
    pixels = np.arange(images.shape[1])
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = (np.clip(overlap, 0, None) * SIZE / images.shape[1]).astype(np.float32)
    chunks = np.array_split(images, -(-len(images) // CHUNK))
    return np.concatenate([np.round(255 * (weights @ chunk @ weights.T)).astype(np.uint8) for chunk in chunks])
