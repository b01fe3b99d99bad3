"""A TensorFlow Datasets builder for Omniglot that needs no TensorFlow.

Imported only when there is something to prepare, since it needs the extra `tfds`.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
ARCHIVES = {
    "train": "images_background.zip",
    "test": "images_evaluation.zip",
    "small1": "images_background_small1.zip",
    "small2": "images_background_small2.zip",
}


class OmniglotDrawings(tfds.core.GeneratorBasedBuilder):
    """Omniglot, with the splits and keys of TFDS's own `omniglot` and one channel of 0 and 1."""

    VERSION = tfds.core.Version("1.0.0")
    archives: Path | None = None  # a folder with the four archives; None downloads them

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten characters of 50 alphabets, each drawn by 20 people.",
            homepage="https://github.com/brendenlake/omniglot",
            citation="Lake, Salakhutdinov & Tenenbaum, 2015, Human-level concept learning through "
            "probabilistic program induction. Science 350.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(105, 105), dtype=np.uint8, encoding="zlib"),
                    "alphabet": tfds.features.Text(),
                    "alphabet_char_id": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        if self.archives is None:
            # The download manager knows these addresses' checksums from TFDS's own builder.
            paths = dl_manager.download({split: URL + name for split, name in ARCHIVES.items()})
        else:
            paths = {split: self.archives / name for split, name in ARCHIVES.items()}
        return {split: self._generate_examples(path) for split, path in paths.items()}

    def _generate_examples(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".png"):
                    _, alphabet, character, file = name.split("/")
                    yield (
                        file,
                        {
                            "image": np.asarray(Image.open(io.BytesIO(archive.read(name))), np.uint8),
                            "alphabet": alphabet,
                            "alphabet_char_id": int(character.removeprefix("character")) - 1,
                        },
                    )
