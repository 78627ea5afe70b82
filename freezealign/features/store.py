"""FeatureStore: frozen features of paired data, computed once, on disk or in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freezealign.features.frozen import FrozenFeatures, open_array
from freezealign.files import check_version, read_object, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Skipped:
    """An item that was left out: its position in the data, and why."""

    index: int
    reason: str


class FeatureStore:
    """Frozen features of n items, for each modality, and which rows belong to which item.

    An item has one or more rows in each modality: an image with five captions has one image row and five text rows.

    Args:
        features: The features of each modality.
        offsets: For each modality (n + 1): rows ``offsets[i]:offsets[i + 1]`` belong to item i.
        skipped: What was left out on the way.
        items: Which items this object shows, in order; all by default.
    """

    def __init__(
        self,
        features: Mapping[str, FrozenFeatures],
        offsets: Mapping[str, np.ndarray],
        skipped: Sequence[Skipped] = (),
        items: np.ndarray | None = None,
    ) -> None:
        self.features, self.offsets, self.skipped = dict(features), dict(offsets), list(skipped)
        self.items = np.arange(len(next(iter(self.offsets.values()))) - 1) if items is None else items

    def __len__(self) -> int:
        return len(self.items)

    def select(self, index: Sequence[int] | np.ndarray | slice) -> FeatureStore:
        """Return some of the items, sharing the features."""
        return FeatureStore(self.features, self.offsets, self.skipped, self.items[index])

    def __getitem__(self, modality: str) -> FrozenFeatures:
        """Return one modality's features of these items, all rows of an item in order."""
        offsets = self.offsets[modality]
        rows = [np.arange(offsets[item], offsets[item + 1]) for item in self.items]
        return self.features[modality][np.concatenate(rows) if rows else np.arange(0)]

    def counts(self, modality: str) -> np.ndarray:
        """Return how many rows each item has in ``modality``."""
        return self.offsets[modality][self.items + 1] - self.offsets[modality][self.items]

    def load(self, index: np.ndarray, choice: np.ndarray) -> dict[str, Any]:
        """Return one row a modality of some items as batches; ``choice`` in [0, 1) says which of several captions."""
        batch = {}
        for modality, features in self.features.items():
            pick = (choice * self.counts(modality)[index]).astype(np.int64)
            batch[modality] = features.load(self.offsets[modality][self.items[index]] + pick)
        return batch

    def check(self, fingerprints: Mapping[str, str]) -> None:
        """Make sure these features come from the encoders with the given fingerprints.

        Raises:
            ValueError: If a modality is absent, or its encoder is another; the message names both fingerprints.
        """
        for modality, fingerprint in fingerprints.items():
            if modality not in self.features:
                raise ValueError(f"the store has {sorted(self.features)}, but the model also needs '{modality}'.")
            check_fingerprint(self.features[modality], fingerprint)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole store to a new folder; it appears there complete or not at all.

        Raises:
            FileExistsError: If ``path`` exists.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists; open it with FeatureStore.open, or choose another folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            for modality in self.features:
                self[modality].save(folder)
                offsets = np.concatenate([[0], np.cumsum(self.counts(modality))])
                np.save(folder / f"{modality}.items.npy", offsets)
            write_json(folder / "manifest.json", self._manifest())
            folder.rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FeatureStore:
        """Memory-map a saved store; nothing is read until it is used.

        Raises:
            ValueError: If the folder is not a complete store, or a later version wrote it.
        """
        path = Path(path)
        manifest = read_object(path / "manifest.json", ("format_version", "modalities", "skipped"))
        check_version(path, manifest, FORMAT_VERSION)
        features = {
            modality: FrozenFeatures.open(path, modality, entry["fingerprint"], entry["arrays"])
            for modality, entry in manifest["modalities"].items()
        }
        offsets = {modality: open_array(path, f"{modality}.items.npy") for modality in features}
        return cls(features, offsets, [Skipped(**entry) for entry in manifest["skipped"]])

    def _manifest(self) -> dict[str, Any]:
        modalities = {
            modality: {"fingerprint": features.fingerprint, "arrays": sorted(features.arrays)}
            for modality, features in self.features.items()
        }
        skipped = [asdict(entry) for entry in self.skipped]
        return {"format_version": FORMAT_VERSION, "modalities": modalities, "skipped": skipped}


def check_fingerprint(features: FrozenFeatures, fingerprint: str) -> None:
    """Raise a ``ValueError`` naming both fingerprints unless ``features`` were made by the encoder given."""
    if features.fingerprint != fingerprint:
        raise ValueError(
            f"these {features.modality} features were made by another encoder: theirs has fingerprint "
            f"{features.fingerprint}, the model's {fingerprint}. Extract them again with this model."
        )
