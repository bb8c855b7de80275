"""ImageNet-C and CIFAR-10-C from their files (Hendrycks and Dietterich, ICLR 2019): an image set a corruption and severity.

github.com/hendrycks/robustness says how they were made; the archives are at zenodo.org/records/2235448 and 2535967.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanbench.data.imagenet import Layout, wnids
from sanbench.errors import InputError, SanbenchError
from sanbench.late import Late

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sanbench.data import images as loaded
else:
    np, torch, loaded = Late("numpy"), Late("torch"), Late("sanbench.data.images")

SEVERITIES = range(1, 6)
SIDE = 224  # pixels of ImageNet-C's files, which were resized and cropped before they were corrupted
BENCHMARK = {  # our name: theirs, of the fifteen kinds that the benchmark's mean is over
    "gaussian-noise": "gaussian_noise",
    "shot-noise": "shot_noise",
    "impulse-noise": "impulse_noise",
    "defocus-blur": "defocus_blur",
    "glass-blur": "glass_blur",
    "motion-blur": "motion_blur",
    "zoom-blur": "zoom_blur",
    "snow": "snow",
    "frost": "frost",
    "fog": "fog",
    "brightness": "brightness",
    "contrast": "contrast",
    "elastic": "elastic_transform",
    "pixelate": "pixelate",
    "jpeg": "jpeg_compression",
}
EXTRA = {
    "speckle-noise": "speckle_noise",
    "gaussian-blur": "gaussian_blur",
    "spatter": "spatter",
    "saturate": "saturate",
}
STORED = BENCHMARK | EXTRA
ARCHIVES = ("noise", "blur", "weather", "digital", "extra")  # folders that ImageNet-C's archives may be unpacked into


def folders(kinds: dict[str, str]) -> dict[str, int]:
    return {f"{folder}/{severity}": 50_000 for folder in kinds.values() for severity in SEVERITIES}


IMAGENET_C = Layout(wnids(), folders(BENCHMARK), folders(EXTRA), groups=ARCHIVES)


@dataclass(frozen=True)
class Arrays:
    """CIFAR-10-C: a NumPy file a corruption, `images` of each severity one after the other, and labels.npy likewise.

    Images are N x 32 x 32 x 3, uint8. `folder` is where the archive unpacks them.
    """

    folder: str = "CIFAR-10-C"
    images: int = 10_000
    side: int = 32
    classes: tuple[str, ...] = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def find(self, root: Path) -> Path:
        named = os.path.basename(os.path.abspath(root)) == self.folder and not (root / self.folder).is_dir()
        return root if named else root / self.folder

    def opened(self, path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
        """The file's array, mapped. Raises InputError if there is none, SanbenchError for one of another shape or type."""
        if not path.is_file():
            raise InputError(f"There is no file {path}: cifar10-c needs labels.npy and KIND.npy, as its archive has them.")
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SanbenchError(f"{path} is no NumPy array that can be read: {str(error).splitlines()[0]}") from error
        if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
            found, wanted = (" x ".join(f"{side:,}" for side in each) for each in (array.shape, shape))
            raise SanbenchError(f"{path} holds {found} of {array.dtype}: cifar10-c has {wanted} integers there.")
        return array

    def labels(self, root: Path) -> NDArray[np.int64]:
        """Of all severities one after the other."""
        path = self.find(root) / "labels.npy"
        labels = np.asarray(self.opened(path, (len(SEVERITIES) * self.images,)), np.int64)
        if not set(np.unique(labels).tolist()) <= set(range(len(self.classes))):
            raise SanbenchError(f"{path} holds labels from {labels.min()} to {labels.max()}: cifar10-c has 0 to 9.")
        if (labels.reshape(len(SEVERITIES), -1) != labels[: self.images]).any():
            raise SanbenchError(f"{path} holds other labels for one severity than for another.")
        return labels

    def pixels(self, root: Path, corruption: str) -> NDArray[np.uint8]:
        path = self.find(root) / f"{STORED[corruption]}.npy"
        array = self.opened(path, (len(SEVERITIES) * self.images, self.side, self.side, 3))
        if array.dtype != np.uint8:
            raise SanbenchError(f"{path} holds {array.dtype}: cifar10-c has uint8.")
        return array

    def load(self, corruption: str, severity: int, root: Path) -> loaded.TensorImages:
        """One severity of one file. `fingerprint` is that of the labels, which all share; that of pixels in `stored`."""
        chosen = slice((severity - 1) * self.images, severity * self.images)
        labels = torch.from_numpy(self.labels(root)[chosen])
        images = torch.from_numpy(np.array(self.pixels(root, corruption)[chosen])).permute(0, 3, 1, 2).contiguous()
        found = loaded.TensorImages("cifar10-c", "test", images, labels, list(self.classes), crop_padding=0)
        found.stored = loaded.Stored(corruption, severity, found.fingerprint)
        found.fingerprint = hashlib.sha256(labels.numpy().tobytes()).hexdigest()
        return found

    def problems(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Each file that a complete set has, with the sentence that is wrong with it, empty where nothing is."""
        kinds = [*BENCHMARK, *(kind for kind, name in EXTRA.items() if (self.find(root) / f"{name}.npy").is_file())]
        checks = {"labels": lambda: self.labels(root)}
        checks |= {STORED[kind]: lambda kind=kind: self.pixels(root, kind) for kind in kinds}  # type: ignore[misc]  # its default
        for name, opened in checks.items():
            sentence = ""
            try:
                opened()
            except SanbenchError as error:
                sentence = str(error)
            yield self.find(root) / f"{name}.npy", sentence


CIFAR10_C = Arrays()
