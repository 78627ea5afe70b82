"""Run the frozen encoders over paired data, once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from freezealign.data.pairs import Pair, count_pairs, iterate_pairs, undecoded
from freezealign.features.frozen import FrozenFeaturesBuilder
from freezealign.features.store import FeatureStore, Skipped
from freezealign.inputs import InputError
from freezealign.modules import Features, FrozenEncoder
from freezealign.prefetch import prefetch, to_device

logger = logging.getLogger(__name__)


def extract(
    data: Iterable[Any],
    encoders: Mapping[str, FrozenEncoder],
    *,
    batch_size: int = 32,
    device: torch.device,
    strict: bool = False,
    show_progress_bar: bool = True,
) -> FeatureStore:
    """Return the frozen features of every readable pair.

    Args:
        data: Pairs or batches of pairs; see :func:`freezealign.data.pairs.iterate_pairs`.
        encoders: The frozen encoder of each modality.
        batch_size: Pairs a forward pass.
        device: Where the encoders are.
        strict: Raise at the first bad item instead of leaving its pair out and listing it in ``skipped``.
        show_progress_bar: Show progress if it takes longer than a second.

    Raises:
        InputError: With ``strict``, at the first item that cannot be read or whose features are not finite.
        MemoryError: If the features will not fit into memory.
        ValueError: If there is no pair that can be read.
    """
    from tqdm.auto import tqdm

    collector, data = _Collector(encoders, strict), undecoded(data)
    pairs = iterate_pairs(data, list(encoders))
    total = count_pairs(data, list(encoders))
    with tqdm(total=total, desc="Frozen features", unit="pair", disable=not show_progress_bar, delay=1) as bar:
        for read, batches in prefetch(_read_batches(pairs, collector, batch_size)):
            with torch.no_grad():
                outputs = {key: encoders[key](to_device(batch, device)) for key, batch in batches.items()}
            collector.add(read, outputs)
            _check_memory(collector, total)
            bar.update(len(read))
    return collector.build()


class ReadPair:
    """A pair whose items have been read, and its position in the data."""

    def __init__(self, index: int, items: Pair) -> None:
        self.index, self.items = index, items


class _Collector:
    """Gathers features, and what was skipped."""

    def __init__(self, encoders: Mapping[str, FrozenEncoder], strict: bool) -> None:
        self.encoders, self.strict = encoders, strict
        self.builders = {key: FrozenFeaturesBuilder(key, encoder.fingerprint) for key, encoder in encoders.items()}
        self.counts: dict[str, list[int]] = {key: [] for key in encoders}
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(next(iter(self.counts.values())))

    def skip(self, index: int, reason: str) -> None:
        if self.strict:
            raise InputError(f"pair {index}: {reason}")
        self.skipped.append(Skipped(index, reason))

    def read(self, index: int, pair: Pair) -> ReadPair | None:
        """Return the pair with every item read, or note why it cannot be."""
        try:
            return ReadPair(index, read_pair(pair, self.encoders))
        except InputError as error:
            self.skip(index, str(error))
            return None

    def add(self, pairs: Sequence[ReadPair], outputs: Mapping[str, Features]) -> None:
        """Keep the features of those pairs of a batch that are finite throughout."""
        rows = {key: _rows_of(pairs, key) for key in outputs}
        good = {key: finite_rows(output) for key, output in outputs.items()}
        for position, pair in enumerate(pairs):
            bad = [key for key in outputs if not good[key][rows[key][position]].all()]
            if bad:
                self.skip(pair.index, f"the {bad[0]} encoder '{self.encoders[bad[0]].name}' gave NaN or Inf for it.")
                continue
            for key, output in outputs.items():
                self.builders[key].add(output, rows[key][position].tolist())
                self.counts[key].append(len(rows[key][position]))

    def build(self) -> FeatureStore:
        """Return the store, and log how many items were skipped."""
        if not len(self):
            reasons = "; ".join(f"pair {entry.index}: {entry.reason}" for entry in self.skipped[:3])
            raise ValueError(f"there is no pair that can be read. {reasons or 'The data is empty.'}")
        if self.skipped:
            first = self.skipped[0]
            logger.warning(
                "skipped %d of %d pairs; the first is %d: %s",
                len(self.skipped),
                len(self) + len(self.skipped),
                first.index,
                first.reason,
            )
        self.skipped.sort(key=lambda entry: entry.index)
        offsets = {key: np.concatenate([[0], np.cumsum(counts)]) for key, counts in self.counts.items()}
        return FeatureStore({key: builder.build() for key, builder in self.builders.items()}, offsets, self.skipped)


def read_pair(pair: Pair, encoders: Mapping[str, FrozenEncoder]) -> Pair:
    """Return ``pair`` with every item read as its encoder takes it.

    Raises:
        InputError: If an item cannot be read, or there is none of a modality.
    """
    for key, items in pair.items():
        if not items:
            raise InputError(f"there is no {key}.")
    return {key: [encoders[key].read(item) for item in items] for key, items in pair.items()}


def finite_rows(output: Features) -> np.ndarray:
    """Return for each row of an encoder's output whether all its embeddings are finite."""
    finite = torch.isfinite(output["token_embeddings"]).flatten(1).all(1)
    if output.get("cls_token_embeddings") is not None:
        finite &= torch.isfinite(output["cls_token_embeddings"]).all(1)
    return finite.cpu().numpy()


def _read_batches(
    pairs: Iterator[Pair], collector: _Collector, batch_size: int
) -> Iterator[tuple[list[ReadPair], dict[str, Features]]]:
    read = (collector.read(index, pair) for index, pair in enumerate(pairs))
    good = (pair for pair in read if pair is not None)
    while batch := list(islice(good, batch_size)):
        yield (
            batch,
            {
                key: encoder.collate([item for pair in batch for item in pair.items[key]])
                for key, encoder in collector.encoders.items()
            },
        )


def _rows_of(pairs: Sequence[ReadPair], key: str) -> list[np.ndarray]:
    ends = np.cumsum([len(pair.items[key]) for pair in pairs])
    return [np.arange(end - len(pair.items[key]), end) for pair, end in zip(pairs, ends)]


def _check_memory(collector: _Collector, total: int | None) -> None:
    """Raise before the machine runs out: the features are joined at the end, which takes their size once more."""
    import psutil

    so_far = sum(builder.bytes for builder in collector.builders.values())
    done = len(collector) + len(collector.skipped)
    per_pair = so_far / max(done, 1)
    expected = per_pair * max(total or 0, done)
    needed, free = 2 * expected - so_far, psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"the frozen features need about {expected / 2**30:.1f} GiB ({per_pair / 2**10:.0f} KiB a pair), "
            f"and {free / 2**30:.1f} GiB of memory are free. Use fit(…, cache_features=False), which encodes anew in "
            "every epoch, or an encoder with fewer tokens."
        )
