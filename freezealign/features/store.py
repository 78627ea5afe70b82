"""FeatureStore: frozen features of paired data, computed once, on disk or in memory."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezealign.batch import Features
from freezealign.encoders import FrozenEncoder
from freezealign.features.arrays import array_parts
from freezealign.features.columns import Column, NpyFile, Runs, Strings
from freezealign.features.folder import StoreFolder
from freezealign.features.frozen import FrozenFeatures, Origin
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
        named = {f"items/{modality}" for modality in origins} | {"items/ids.utf8", "items/ids.lengths"}
        if named != (held := {key for key in columns if key.startswith("items/")}):
            raise ValueError(f"the store's manifest stands for {sorted(named)}, but its shards hold {sorted(held)}.")
        for modality, origin in origins.items():
            prefix = f"{modality}/"
            own = {key.removeprefix(prefix): column for key, column in columns.items() if key.startswith(prefix)}
            self.features[modality] = FrozenFeatures(modality, origin, own)
            vectors = own.get("lengths", own.get("sentence_embedding"))
            if vectors is None:
                raise ValueError(f"its shards hold no features of '{modality}'; extract them again.")
            self.rows[modality] = columns[f"items/{modality}"].runs(len(vectors))
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
        kinds = [{key: (part.dtype.str, part.shape[1:]) for key, part in shard.items()} for shard in shards]
        if other := next((kind for kind in kinds if kind != kinds[0]), None):
            raise ValueError(f"the shards of a store have equal columns, got {kinds[0]} and {other}; extract it again.")
        columns = {key: Column([shard[key] for shard in shards]) for key in shards[0]}
        return cls(origins, columns, skipped, source=source)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        ids: Sequence[Any] | None = None,
        captions: Sequence[str | Sequence[str]] | None = None,
        encoders: Mapping[str, FrozenEncoder] | None = None,
        strict: bool = False,
    ) -> FeatureStore:
        """Take vectors that were made elsewhere as they are; row i of all arrays is one item.

        They are read once, in parts, to find what is not finite. Arrays in memory are shared, files stay on disk.

        Args:
            arrays: By modality, of any names: vectors (n, D) of float16, float32 or float64, NumPy, torch, or the path
                of a ``.npy`` file, or of several that follow one another. Where items have several vectors: (n, k, D),
                or a list of n arrays (k_i, D).
            ids: Names of the items; by default their positions.
            captions: Of each item the text that its vector of ``text`` was made of, or one for each of several.
            encoders: What made the vectors of some modalities, so that a model on these very encoders can be trained on
                them and encode raw items; by default :meth:`FrozenEncoder.precomputed` of their widths.
            strict: Raise at the first item that cannot be used instead of leaving it out and listing it in ``skipped``.

        Raises:
            InputError: With ``strict``, at an item with a number that is NaN, infinite or beyond float32, or no vector.
            ValueError: If shapes, dtypes, lengths or widths do not fit, or no item can be used.

        >>> store = FeatureStore.from_arrays({"image": images, "text": texts})  # (n, 512), (n, 384)
        >>> model = FreezeAlign(store.encoders)  # or {"image": 512, "text": 384}
        >>> history = model.fit(store)
        """
        return cls(*array_parts(arrays, ids, captions, encoders, strict))

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
    def encoders(self) -> dict[str, FrozenEncoder]:
        """What takes vectors like those of this store, for each modality whose vectors were made elsewhere."""
        found = {}
        for modality, features in self.features.items():
            encoder = FrozenEncoder.precomputed(features.width, modality, features.origin.name)
            if features.origin.fingerprint == encoder.fingerprint:
                found[modality] = encoder
        return found

    @property
    def in_memory(self) -> bool:
        """Whether the features are in memory rather than on disk."""
        return not any(
            isinstance(part, (NpyFile, np.memmap)) for column in self.columns.values() for part in column.parts
        )

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
            runs, many = self.rows[modality], captions if modality == "text" or features.texts is not None else 1
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
        return FeatureStore.from_shards(self.origins, [store._columns(np.arange(len(store)))], self.skipped)

    @classmethod
    def join(cls, stores: Sequence[FeatureStore]) -> FeatureStore:
        """Return several stores as one, their items one after another, sharing the features.

        Raises:
            ValueError: If their encoders, levels or dtypes differ.
        """
        first = stores[0]
        if len(stores) == 1:
            return first
        kinds = [{key: str(column.dtype) for key, column in store.columns.items()} for store in stores]
        for other, kind in zip(stores[1:], kinds[1:]):
            other.check(first.origins)
            if kind != kinds[0]:
                raise ValueError(f"stores that are mixed need equal columns: {kinds[0]}, {kind}.")
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
        folder, starts = StoreFolder(partial), range(0, max(1, len(self)), SAVED_SHARD_ITEMS)
        modalities = {modality: origin.to_json() for modality, origin in self.origins.items()}
        try:
            with folder.writing({"level": self.level, "modalities": modalities}):
                for number, start in enumerate(starts):
                    columns = self._columns(np.arange(start, min(start + SAVED_SHARD_ITEMS, len(self))))
                    folder.write(number, Shard(columns, [] if number else self.skipped))
                folder.finish(len(starts))
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

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
        if not partial and not folder.is_complete(manifest, numbers):
            raise ValueError(
                f"the store in {path} is not complete: {len(numbers)} shards are there. Run its extraction again to "
                "go on with it, or open what is there with partial=True."
            )
        entries = {number: folder.entry(number) for number in numbers}
        shards = [folder.files(*own) for own in entries.items()]
        for own in entries.items() if verify else ():
            folder.verify(*own)
        skipped = [one for entry in entries.values() for one in entry["skipped"]]
        source = "".join(told["sha256"] for entry in entries.values() for told in entry["files"].values())
        try:
            return cls.from_shards(manifest["modalities"], shards, skipped, source)
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: {error}") from None

    def _at(self, index: np.ndarray) -> np.ndarray:
        return index if self.items is None else self.items[index]

    def _columns(self, index: np.ndarray) -> dict[str, np.ndarray]:
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
        return columns
