"""FeatureStore: frozen features of paired data, computed once, on disk or in memory."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.features.columns import Column, NpyFile, Runs, Strings
from freezealign.features.folder import StoreFolder, well_formed
from freezealign.features.frozen import FrozenFeatures
from freezealign.features.origin import Origin
from freezealign.features.shard import Shard
from freezealign.inputs import Skipped

SAVED_SHARD_ITEMS = 8192


class FeatureStore:
    """Frozen features of n items, for each modality, and which rows belong to which item.

    An item has one or more rows in each modality: an image with five captions has one image row and five text rows.

    Args:
        origins: For each modality the encoder that made its features.
        columns: As :class:`~freezealign.features.shard.Shard` names them.
        skipped: What was left out on the way.
        items: Which items this object shows, in order; all by default.
        source: What tells the data it was made of from other data; by default the columns themselves do.
    """

    def __init__(
        self,
        origins: Mapping[str, Origin],
        columns: Mapping[str, Column],
        skipped: Sequence[Skipped] = (),
        items: np.ndarray | None = None,
        source: str = "",
    ) -> None:
        self.columns, self.skipped, self.items, self._source = dict(columns), list(skipped), items, source
        self.features: dict[str, FrozenFeatures] = {}
        self.rows: dict[str, Runs] = {}
        for modality, origin in origins.items():
            if f"items/{modality}" not in columns:
                raise ValueError(f"the store's manifest names '{modality}', but its shards hold {sorted(columns)}.")
            prefix = f"{modality}/"
            own = {key.removeprefix(prefix): column for key, column in columns.items() if key.startswith(prefix)}
            self.features[modality] = FrozenFeatures(modality, origin, own)
            self.rows[modality] = Runs(columns[f"items/{modality}"].all())
        self._ids = Strings(columns["items/ids.utf8"], columns["items/ids.lengths"])

    @classmethod
    def from_shards(
        cls,
        origins: Mapping[str, Origin],
        shards: Sequence[Mapping[str, np.ndarray | NpyFile]],
        skipped: Sequence[Skipped] = (),
        source: str = "",
    ) -> FeatureStore:
        """Put shards together, each a mapping as :class:`~freezealign.features.shard.Shard` has it."""
        shards = [shard for shard in shards if shard]
        if not shards:
            raise ValueError("a feature store needs at least one item.")
        columns = {key: Column([shard[key] for shard in shards]) for key in shards[0]}
        return cls(origins, columns, skipped, source=source)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()))) if self.items is None else len(self.items)

    def __repr__(self) -> str:
        parts = [f"{modality}: {features.origin.name}" for modality, features in self.features.items()]
        return f"FeatureStore({len(self):,} items, {self.level}, {', '.join(parts)})"

    @property
    def origins(self) -> dict[str, Origin]:
        """For each modality the encoder that made its features."""
        return {modality: features.origin for modality, features in self.features.items()}

    @property
    def level(self) -> str:
        """``pooled`` if vectors are stored, ``tokens`` if all tokens are."""
        return "pooled" if all(features.tokens is None for features in self.features.values()) else "tokens"

    @property
    def in_memory(self) -> bool:
        """Whether the features are in memory rather than on disk."""
        return not any(isinstance(part, NpyFile) for column in self.columns.values() for part in column.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def ids(self) -> list[str]:
        """The name of each item: its ``id`` in the data, else its position there."""
        return self._ids.take(self._at(np.arange(len(self))))

    def digest(self) -> str:
        """Return a SHA-256 that tells these items from others, and from the same in another order.

        Of features extracted here it is that of the data, of a store on disk that of its checksums.
        """
        digest = hashlib.sha256(self._source.encode())
        if not self._source:
            for key, column in sorted(self.columns.items()):
                digest.update(f"{key}:{column.dtype}:{len(column)};".encode())
                for part in column.parts:
                    digest.update(np.ascontiguousarray(part.map() if isinstance(part, NpyFile) else part).data)
        if self.items is not None:
            digest.update(np.asarray(self.items, np.int64).tobytes())
        return digest.hexdigest()

    def select(self, index: Sequence[int] | np.ndarray | slice) -> FeatureStore:
        """Return some of the items, sharing the features."""
        items = np.arange(len(self)) if self.items is None else self.items
        index = index if isinstance(index, slice) else np.asarray(index, dtype=None if len(index) else np.int64)
        selection = copy.copy(self)
        selection.items = items[index]
        return selection

    def __getitem__(self, modality: str) -> FrozenFeatures:
        """Return one modality's features of these items, all rows of an item in order."""
        features = self.features[modality]
        return features if self.items is None else features[self.rows[modality].rows(self.items)]

    def counts(self, modality: str) -> np.ndarray:
        """Return how many rows each item has in ``modality``."""
        return self.rows[modality].lengths(self._at(np.arange(len(self))))

    def load(
        self, index: np.ndarray, row_draws: np.ndarray, captions: int = 1
    ) -> tuple[dict[str, Features], dict[str, Tensor] | None]:
        """Return rows of some items as one batch a modality.

        Args:
            index: (B,) which items.
            row_draws: (B,) a number in [0, 1) for each, which draws the first of its rows in each modality.
            captions: Rows of each text; an item with fewer gives some twice.

        Returns:
            For each modality the batch, and which of the B items each row belongs to; ``None`` instead where every
            item has one row in every modality.
        """
        items, batch, owners = self._at(index), {}, {}
        for modality, features in self.features.items():
            runs, many = self.rows[modality], captions if features.texts is not None else 1
            counts = runs.lengths(items)
            first = (row_draws * counts).astype(np.int64)
            row_draws = row_draws * counts - first  # the remainder is as random, and says nothing of what was drawn
            pick = first[:, None] + np.arange(many)
            batch[modality] = features.load((runs.starts(items)[:, None] + pick % counts[:, None]).ravel())
            owners[modality] = torch.arange(len(index)).repeat_interleave(many)
        return batch, owners if captions > 1 else None

    def resident(self, index: Sequence[int] | np.ndarray | slice | None = None) -> FeatureStore:
        """Return some of the items, or all, read into memory."""
        store = self if index is None else self.select(index)
        shard = store._shard(np.arange(len(store)))
        return FeatureStore.from_shards(self.origins, [shard.columns], self.skipped)

    @classmethod
    def join(cls, stores: Sequence[FeatureStore]) -> FeatureStore:
        """Return several stores as one, their items one after another, sharing the features.

        Raises:
            ValueError: If their encoders, levels or dtypes differ.
        """
        first = stores[0]
        if len(stores) == 1:
            return first
        for other in stores[1:]:
            other.check(first.origins)
            if other._dtypes() != first._dtypes():
                raise ValueError(f"stores that are mixed need equal columns: {first._dtypes()}, {other._dtypes()}.")
        columns = {key: Column([part for s in stores for part in s.columns[key].parts]) for key in first.columns}
        starts = np.cumsum([0, *(len(store.columns["items/ids.lengths"]) for store in stores)])
        items = [start + store._at(np.arange(len(store))) for start, store in zip(starts, stores)]
        return cls(first.origins, columns, [e for store in stores for e in store.skipped], np.concatenate(items))

    def check(self, origins: Mapping[str, Origin]) -> None:
        """Make sure these features come from encoders with the given origins.

        Raises:
            ValueError: If a modality is absent, or its encoder, preprocessing or pooling is another.
        """
        for modality, origin in origins.items():
            if modality not in self.features:
                raise ValueError(f"the store has {sorted(self.features)}, but the model also needs '{modality}'.")
            self.features[modality].origin.check(modality, origin)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these items to a new folder, which appears whole or not at all.

        Raises:
            FileExistsError: If ``path`` exists.
            OSError: If it cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists; open it with FeatureStore.open, or choose another folder.")
        partial = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._write(StoreFolder(partial))
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _write(self, folder: StoreFolder) -> None:
        modalities = {modality: origin.to_json() for modality, origin in self.origins.items()}
        starts = range(0, max(1, len(self)), SAVED_SHARD_ITEMS)
        with folder.writing({"level": self.level, "modalities": modalities}):
            for number, start in enumerate(starts):
                shard = self._shard(np.arange(start, min(start + SAVED_SHARD_ITEMS, len(self))))
                shard.skipped = [] if number else self.skipped
                folder.write(number, shard)
            folder.finish(len(starts))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, partial: bool = False, verify: bool = False) -> FeatureStore:
        """Open a store; features are read when they are used.

        Args:
            path: The folder.
            partial: Accept a store whose extraction has not finished: what is there is used.
            verify: Read everything once and compare the checksums.

        Raises:
            ValueError: If it is no store, not complete or damaged, or a later version wrote it.
        """
        folder = StoreFolder(Path(path))
        manifest, numbers = folder.manifest(), folder.finished()
        if not partial and not folder.complete:
            raise ValueError(
                f"the store in {path} is not complete: {len(numbers)} shards are there. Run its extraction again to "
                "go on with it, or open what is there with partial=True."
            )
        with well_formed(folder.path):
            for number in numbers if verify else ():
                folder.verify(number)
            origins = {modality: Origin(**entry) for modality, entry in manifest["modalities"].items()}
            skipped = [entry for number in numbers for entry in folder.skipped(number)]
            source = "".join(map(folder.checksums, numbers))
            return cls.from_shards(origins, [folder.files(number) for number in numbers], skipped, source)

    def _at(self, index: np.ndarray) -> np.ndarray:
        return index if self.items is None else self.items[index]

    def _dtypes(self) -> dict[str, str]:
        return {key: str(column.dtype) for key, column in self.columns.items()}

    def _shard(self, index: np.ndarray) -> Shard:
        """Read some of the items into memory."""
        items = self._at(index)
        columns = {
            "items/ids.utf8": self._ids.utf8.take(self._ids.runs.rows(items)),
            "items/ids.lengths": self._ids.runs.lengths(items).astype(np.int32),
        }
        for modality, features in self.features.items():
            runs = self.rows[modality]
            columns[f"items/{modality}"] = runs.lengths(items).astype(np.int32)
            columns |= {f"{modality}/{key}": rows for key, rows in features.arrays(runs.rows(items)).items()}
        return Shard(columns)
