"""``freezealign curate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from freezealign.curation import Curation, Filter, Pool, Prototypes

Pools = Annotated[
    list[str],
    typer.Argument(
        help="The pool: a feature store, a folder of .npy files as clip-retrieval writes them, or Parquet files. "
        "Several: the same pairs seen by several encoders."
    ),
]
Concepts = Annotated[
    Path,
    typer.Option(
        help="A folder with a sub-folder of pictures for each concept, a .txt file with a name a line (with "
        "--modality text), or saved prototypes (.safetensors)."
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for ids.txt, selection.parquet, card.md and its figures.")]
Modality = Annotated[Literal["image", "text"], typer.Option(help="The features to compare with the concepts.")]
Encoder = Annotated[
    list[str] | None, typer.Option(help="What made the features of each pool, where the pool does not tell.")
]
Shots = Annotated[int | None, typer.Option(min=1, help="Pictures a concept; all by default.")]
Template = Annotated[list[str] | None, typer.Option(help="Prompt for names, with {}; repeatable.")]
PerConcept = Annotated[int, typer.Option(min=1, help="The most pairs a concept takes.")]
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Pairs looked at for each concept; 4 times as many by default.")
]
MinWords = Annotated[int | None, typer.Option(min=1, help="Words a caption has at least.")]
MaxWords = Annotated[int | None, typer.Option(min=1, help="Words a caption has at most.")]
Language = Annotated[
    list[str] | None, typer.Option(help="Leave out captions clearly not in this language (en, de, …); repeatable.")
]
MinSimilarity = Annotated[float | None, typer.Option(help="Least image–text cosine, if the pool states it.")]
EqualCaptions = Annotated[bool, typer.Option("--one-of-equal-captions", help="Keep one pair a caption.")]
NearDuplicates = Annotated[
    float | None, typer.Option(help="Cosine from which on two candidates count as one, such as 0.95.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="A test set, in any form of a pool: what is like it is left out.")
]
ExcludeThreshold = Annotated[float | None, typer.Option(help="Cosine from which on that is so; 0.95 by default.")]
Engine = Annotated[
    Literal["local", "ray", "faiss"],
    typer.Option(help="ray divides the pool among machines; faiss searches approximately."),
]
Device = Annotated[str, typer.Option(help="Where matrix products run: cpu, cuda, …")]
Scores = Annotated[
    Path | None, typer.Option(help="Folder of the pass over the pool, for runs with other filters to share.")
]
Pictures = Annotated[
    str | None, typer.Option(help="Where the pool's pictures are, as for 'freezealign extract': for a sheet.")
]
Shards = Annotated[
    str | None, typer.Option(help="Webdataset shards of the pool; the selected samples are copied to subset/.")
]
MixWith = Annotated[
    list[str] | None, typer.Option(help="Another pool to train on beside the selection; prints --weight.")
]
Temperature = Annotated[
    float | None, typer.Option(min=1, help="Of that mixture: 1 keeps the sizes, large draws equally.")
]
Seed = Annotated[int, typer.Option(help="Of the draw of shots and the card's sample of the pool.")]


def curate(
    pools: Pools,
    concepts: Concepts,
    output: Output,
    modality: Modality = "image",
    encoder: Encoder = None,
    shots: Shots = None,
    template: Template = None,
    per_concept: PerConcept = 2000,
    candidates: Candidates = None,
    min_words: MinWords = None,
    max_words: MaxWords = None,
    language: Language = None,
    min_similarity: MinSimilarity = None,
    equal_captions: EqualCaptions = False,
    near_duplicates: NearDuplicates = None,
    exclude: Exclude = None,
    exclude_threshold: ExcludeThreshold = None,
    engine: Engine = "local",
    device: Device = "cpu",
    scores: Scores = None,
    pictures: Pictures = None,
    shards: Shards = None,
    mix_with: MixWith = None,
    temperature: Temperature = None,
    seed: Seed = 0,
) -> None:
    """Select a balanced, deduplicated training set for your concepts out of a large pool of pairs.

    Each concept, the rarest first, takes the pairs most like its examples; each pair is taken once. Run it again after
    an interruption, and it goes on. The data card in `card.md` says what was selected, removed, and covered.
    """
    from freezealign import curation

    _check_goes_with("--exclude-threshold", exclude_threshold, "--exclude", exclude)
    _check_goes_with("--temperature", temperature, "--mix-with", mix_with)
    opened = [curation.open_pool(pool, modality) for pool in pools]
    tar_files = curation.find_shards(shards) if shards else []
    others = {name: len(curation.open_pool(name, modality)) for name in mix_with or ()}
    prototypes = _prototypes(concepts, opened, encoder, modality, shots, template, seed)
    tests = {name: curation.open_pool(name, modality) for name in exclude or ()}
    filters = _caption_filters(min_words, max_words, language, min_similarity)
    filters += _likeness_filters(opened[0], tests, exclude_threshold, equal_captions, near_duplicates)
    found = curation.curate(
        opened,
        prototypes,
        output,
        per_concept=per_concept,
        candidates=candidates,
        filters=filters,
        engine=engine,
        device=device,
        scores=scores,
        pictures=pictures,
        seed=seed,
    )
    _copy_samples(tar_files, found, output / "subset")
    if mix_with:
        _weigh({str(output / "features"): len(found.selection), **others}, temperature, output / "weights.json")
    typer.echo(f"{len(found.selection):,} of {len(opened[0]):,} pairs. Saved {output}: card.md, selection.parquet, …")


def _check_goes_with(option: str, value: object, other: str, needed: object) -> None:
    if value is not None and not needed:
        raise ValueError(f"{option} goes with {other}.")


def _prototypes(
    concepts: Path,
    pools: Sequence[Pool],
    encoders: Sequence[str] | None,
    modality: Literal["image", "text"],
    shots: int | None,
    templates: Sequence[str] | None,
    seed: int,
) -> list[Prototypes]:
    """Return the concepts in the space of each pool; all encoders are named or none."""
    from freezealign.curation.concepts import read_concepts

    names: Sequence[str | None] = encoders or [None] * len(pools)
    if len(names) != len(pools):
        raise ValueError(f"{len(pools)} pools need as many --encoder, got {len(names)}.")
    return [
        read_concepts(concepts, pool, modality, name, shots, templates or ("{}",), seed)
        for pool, name in zip(pools, names)
    ]


def _caption_filters(
    min_words: int | None, max_words: int | None, languages: Sequence[str] | None, min_similarity: float | None
) -> list[Filter]:
    """Return the filters that look at one pair at a time."""
    from freezealign.curation import CaptionLength, Language, StatedSimilarity

    filters: list[Filter] = []
    if min_words or max_words:
        filters.append(CaptionLength(min_words or 1, max_words))
    if languages:
        filters.append(Language(tuple(languages)))
    if min_similarity is not None:
        filters.append(StatedSimilarity(min_similarity))
    return filters


def _likeness_filters(
    pool: Pool, tests: Mapping[str, Pool], threshold: float | None, equal_captions: bool, near_duplicates: float | None
) -> list[Filter]:
    """Return the filters that compare pairs with those of a test set or with each other."""
    from freezealign.curation import THRESHOLD, EqualCaptions, Leaks, NearDuplicates

    filters: list[Filter] = []
    if tests:
        filters.append(Leaks(tests, pool, threshold or THRESHOLD))
    if equal_captions:
        filters.append(EqualCaptions())
    if near_duplicates is not None:
        filters.append(NearDuplicates(pool, near_duplicates))
    return filters


def _copy_samples(shards: Sequence[Path], found: Curation, folder: Path) -> None:
    """Copy the selected samples out of webdataset shards, if there are any, and warn of damaged ones."""
    from freezealign.curation import write_subset

    if not shards:
        return
    for name, damage in write_subset(shards, found.ids, folder).items():
        typer.secho(f"{name}: {' '.join(damage)}", fg="yellow", err=True)


def _weigh(sizes: Mapping[str, int], temperature: float | None, path: Path) -> None:
    """Print and write how often to draw from each data set."""
    from freezealign.curation import mixing_weights
    from freezealign.files import write_json_atomically

    weights = mixing_weights(sizes, temperature or 1)
    write_json_atomically(path, weights)
    for name, weight in weights.items():
        typer.echo(f"--weight {weight:.4g}  for {name}")
