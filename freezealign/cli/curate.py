"""``freezealign curate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from freezealign.words import printable

if TYPE_CHECKING:
    from freezealign.curation import Filter, Pool, Prototypes

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
Engine = Annotated[
    Literal["local", "ray", "faiss"],
    typer.Option(help="ray divides the pool among machines; faiss searches approximately."),
]
Names = list[str] | None
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Pairs looked at for each concept; 4 times as many by default.")
]
Languages = Annotated[
    Names, typer.Option(help="Leave out captions clearly not in this language (en, de, …); repeatable.")
]
MinSimilarity = Annotated[float | None, typer.Option(help="Least image–text cosine, if the pool states it.")]
NearDuplicates = Annotated[
    float | None, typer.Option(help="Cosine from which on two candidates count as one, such as 0.95.")
]
Exclude = Annotated[Names, typer.Option(help="A test set, in any form of a pool: what is like it is left out.")]
ExcludeThreshold = Annotated[float | None, typer.Option(help="Cosine from which on that is so; 0.95 by default.")]
Scores = Annotated[
    Path | None, typer.Option(help="Folder of the pass over the pool, for runs with other filters to share.")
]
Pictures = Annotated[
    str | None, typer.Option(help="Where the pool's pictures are, as for 'freezealign extract': for a sheet.")
]
Shards = Annotated[
    str | None, typer.Option(help="Webdataset shards of the pool; the selected samples are copied to subset/.")
]
MixWith = Annotated[Names, typer.Option(help="Another pool to train on beside the selection; prints --weight.")]
Temperature = Annotated[
    float | None, typer.Option(min=1, help="Of that mixture: 1 keeps the sizes, large draws equally.")
]
Strict = Annotated[bool, typer.Option(help="Stop where a row cannot be used instead of skipping and listing it.")]


def curate(
    pools: Pools,
    concepts: Concepts,
    output: Output,
    modality: Modality = "image",
    encoder: Annotated[Names, typer.Option(help="What made the features of each pool, if it does not tell.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Pictures a concept; all by default.")] = None,
    template: Annotated[Names, typer.Option(help="Prompt for names, with {}; repeatable.")] = None,
    per_concept: Annotated[int, typer.Option(min=1, help="The most pairs a concept takes.")] = 2000,
    candidates: Candidates = None,
    min_words: Annotated[int | None, typer.Option(min=1, help="Words a caption has at least.")] = None,
    max_words: Annotated[int | None, typer.Option(min=1, help="Words a caption has at most.")] = None,
    language: Languages = None,
    min_similarity: MinSimilarity = None,
    equal_captions: Annotated[bool, typer.Option("--one-of-equal-captions", help="Keep one pair a caption.")] = False,
    near_duplicates: NearDuplicates = None,
    exclude: Exclude = None,
    exclude_threshold: ExcludeThreshold = None,
    engine: Engine = "local",
    device: Annotated[str, typer.Option(help="Where matrix products run: cpu, cuda, …")] = "cpu",
    scores: Scores = None,
    pictures: Pictures = None,
    shards: Shards = None,
    mix_with: MixWith = None,
    temperature: Temperature = None,
    strict: Strict = False,
    seed: Annotated[int, typer.Option(help="Of the draw of shots and the card's sample of the pool.")] = 0,
) -> None:
    """Select a balanced, deduplicated training set for your concepts out of a large pool of pairs.

    Each concept, the rarest first, takes the pairs most like its examples; each pair is taken once. Run it again after
    an interruption, and it goes on. The data card in `card.md` says what was selected, removed, and covered.
    """
    from freezealign import curation

    if exclude_threshold is not None and not exclude:
        raise ValueError("--exclude-threshold goes with --exclude.")
    if temperature is not None and not mix_with:
        raise ValueError("--temperature goes with --mix-with.")
    opened = [curation.open_pool(pool, modality) for pool in pools]
    tar_files = curation.find_shards(shards) if shards else []
    sizes = {name: len(curation.open_pool(name, modality)) for name in mix_with or ()}
    tests = {name: curation.open_pool(name, modality) for name in exclude or ()}
    prototypes = _prototypes(concepts, opened, modality, encoder, shots, template, seed)
    asked = min_words, max_words, language, min_similarity, tests, exclude_threshold, equal_captions, near_duplicates
    found = curation.curate(
        opened,
        prototypes,
        output,
        per_concept=per_concept,
        candidates=candidates,
        filters=_filters(opened[0], *asked),
        engine=engine,
        device=device,
        scores=scores,
        pictures=pictures,
        seed=seed,
        strict=strict,
    )
    damaged = curation.write_subset(tar_files, found.ids, output / "subset") if tar_files else {}
    for name, damage in damaged.items():
        typer.secho(printable(f"{name}: {' '.join(damage)}"), fg="yellow", err=True)
    if mix_with:
        _mix({str(output / "features"): len(found.selection), **sizes}, temperature or 1, output)
    told = f"{len(found.selection):,} of {len(opened[0]):,} pairs, {len(found.skipped):,} skipped"
    typer.echo(f"{told}. Saved {output}: card.md, selection.parquet, …")


def _prototypes(
    concepts: Path,
    pools: list[Pool],
    modality: Modality,
    encoders: Names,
    shots: int | None,
    templates: Names,
    seed: int,
) -> list[Prototypes]:
    """Return the concepts in the space of each pool."""
    from freezealign.curation import read_concepts

    if encoders and len(encoders) != len(pools):
        raise ValueError(f"{len(pools)} pools need as many --encoder, got {len(encoders)}.")
    names: Sequence[str | None] = encoders or [None] * len(pools)
    return [
        read_concepts(concepts, pool, modality, name, shots, templates or ("{}",), seed)
        for pool, name in zip(pools, names)
    ]


def _filters(
    pool: Pool,
    min_words: int | None,
    max_words: int | None,
    languages: Names,
    min_similarity: float | None,
    tests: dict[str, Pool],
    exclude_threshold: float | None,
    equal_captions: bool,
    near_duplicates: float | None,
) -> list[Filter]:
    """Return the filters that the options ask for, in the order in which candidates pass them."""
    from freezealign import curation

    asked = [
        curation.CaptionLength(min_words or 1, max_words) if min_words or max_words else None,
        curation.Language(tuple(languages)) if languages else None,
        curation.StatedSimilarity(min_similarity) if min_similarity is not None else None,
        curation.Leaks(tests, pool, exclude_threshold or curation.THRESHOLD) if tests else None,
        curation.EqualCaptions() if equal_captions else None,
        curation.NearDuplicates(pool, near_duplicates) if near_duplicates is not None else None,
    ]
    return [one for one in asked if one is not None]


def _mix(sizes: dict[str, int], temperature: float, output: Path) -> None:
    """Save with what weights to train on sets of these sizes together, and print them as options of train."""
    from freezealign import curation
    from freezealign.files import write_json_atomically

    weights = curation.mixing_weights(sizes, temperature)
    write_json_atomically(output / "weights.json", weights)
    for name, weight in weights.items():
        typer.echo(f"--weight {weight:.4g}  for {printable(name)}")
