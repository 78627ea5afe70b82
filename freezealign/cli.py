"""The command line: a thin face over public functions. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    name="freezealign",
    help="One embedding space for images and texts in any language, out of encoders that stay frozen.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)


Data = Literal["openmoji", "tuxpaint"]
Recipe = Literal["auto", "token", "pooled", "linear", "glu", "kernel", "relative"]
Init = Literal["closed-form", "random"]
Level = Literal["pooled", "tokens"]
Dtype = Literal["float16", "float32", "int8"]
Engine = Literal["local", "ray"]
Loss = Literal["infonce", "sigmoid"]
Precision = Literal["no", "bf16", "fp16"]
Layers = Literal["last", "all"]
Modality = Literal["image", "text"]
CurationEngine = Literal["local", "ray", "faiss"]

ImageEncoder = Annotated[str, typer.Option(help="A name from 'freezealign encoders', a hub id or a folder.")]
TextEncoder = Annotated[str, typer.Option(help="Likewise.")]


@app.callback()
def main() -> None:
    """Group the commands, so that a single one still needs its name."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model, the report and the picture.")] = Path(
        "demo-output"
    ),
    data: Annotated[
        Data, typer.Option(help="OpenMoji comes with the packages; Tux Paint needs --stamps.")
    ] = "openmoji",
    stamps: Annotated[
        Path | None, typer.Option(help="Folder of the Tux Paint stamps; 'make stamps' fetches it.")
    ] = None,
    fold: Annotated[int, typer.Option(min=0, max=4, help="Which fifth of Tux Paint is held out.")] = 0,
    image_encoder: ImageEncoder = "efficientnet-lite2",
    text_encoder: TextEncoder = "use-multilingual",
    recipe: Annotated[
        Recipe, typer.Option(help="The trained blocks; auto lets the number of pairs decide, token is the paper's.")
    ] = "auto",
    init: Annotated[Init | None, typer.Option(help="Where training starts, instead of what suits.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Passes of contrastive training after that, instead of what suits.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and dropout.")] = 0,
) -> None:
    """Train on real pictures with **English** names only, then ask in fourteen languages.

    Reports retrieval in both directions and zero-shot accuracy on held-out pictures, each beside its chance level, and
    writes `model/`, `report.md`, `report.json` and `queries.png`. Frozen features are kept in the cache: a second run
    only trains.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    with _plain_errors():
        from freezealign.demo import run_demo
        from freezealign.demo.run import load_data

        report = run_demo(
            output,
            load_data(data, stamps, fold),
            encoders=(image_encoder, text_encoder),
            recipe=recipe,
            init=init,
            epochs=epochs,
            seed=seed,
            announce=lambda stage: console.rule(stage, align="left"),
        )
    for title, header, rows in report.tables():
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"Saved [bold]{output}[/]: model/, report.md, report.json, queries.png")


@app.command()
def extract(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of pictures with captions, a .csv, .tsv, .jsonl or .parquet file, or webdataset shards "
            "('shards/{00000..00012}.tar')."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the feature store.")],
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    image_column: Annotated[str, typer.Option(help="Column of paths, addresses or bytes.")] = "image",
    text_column: Annotated[str, typer.Option(help="Column of captions.")] = "text",
    id_column: Annotated[str, typer.Option(help="Column of names, where there is one.")] = "id",
    level: Annotated[
        Level, typer.Option(help="pooled: one vector an item, for every recipe but token. tokens: everything.")
    ] = "pooled",
    dtype: Annotated[Dtype, typer.Option(help="What embeddings are stored as.")] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs a forward pass.")] = 32,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Pairs a file; 8,192 pooled, 1,024 tokens.")] = None,
    views: Annotated[int, typer.Option(min=1, help="Rows an image has: itself and random crops.")] = 1,
    engine: Annotated[Engine, typer.Option(help="ray spreads the shards over a Ray cluster.")] = "local",
    strict: Annotated[
        bool, typer.Option(help="Stop at the first bad item instead of skipping and listing it.")
    ] = False,
) -> None:
    """Run two frozen encoders over pairs once, and keep what they give on disk.

    Run it again after an interruption, and it goes on where it stopped; bad items are skipped and listed in the store's
    `shards/*.json`. Train on it with `freezealign train STORE`, or `model.fit(FeatureStore.open("STORE"))`.
    """
    with _plain_errors():
        from freezealign.data.sources import open_pairs
        from freezealign.model import FreezeAlign

        model = FreezeAlign({"image": image_encoder, "text": text_encoder})
        columns = {"image": (image_column, "image"), "text": (text_column, "text"), "id": (id_column, "id")}
        named = {key: value for key, (value, default) in columns.items() if value != default}
        store = model.extract_features(
            open_pairs(data, **named),
            output,
            level=level,
            dtype=dtype,
            batch_size=batch_size,
            shard_size=shard_size,
            views=views,
            engine=engine,
            strict=strict,
        )
    typer.echo(f"{store}, {store.nbytes / 2**20:,.1f} MiB, {len(store.skipped):,} pairs skipped: {output}")


@app.command()
def train(
    stores: Annotated[list[Path], typer.Argument(help="Feature stores that 'freezealign extract' wrote.")],
    output: Annotated[Path, typer.Option(help="Folder for the model and, below it, checkpoints/.")],
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    recipe: Annotated[Recipe, typer.Option(help="The trained blocks; auto lets the number of pairs decide.")] = "auto",
    dim: Annotated[int, typer.Option(min=1, help="Width of the shared space.")] = 1024,
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each store: how often a pair of it is drawn in an epoch.")
    ] = None,
    init: Annotated[Init | None, typer.Option(help="Where training starts, instead of what suits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Passes over the data, instead of what suits.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    loss: Annotated[Loss, typer.Option(help="Contrastive loss.")] = "infonce",
    precision: Annotated[Precision | None, typer.Option(help="Autocast.")] = None,
    report_to: Annotated[list[str] | None, typer.Option(help="Tracker: tensorboard, wandb, …")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
) -> None:
    """Train projectors on feature stores and save the model.

    Run it again after an interruption, and it goes on from the last checkpoint, exactly. Several processes:
    `torchrun --nproc-per-node 8 -m freezealign train …`.
    """
    with _plain_errors():
        from freezealign.features import FeatureStore
        from freezealign.model import FreezeAlign

        model = FreezeAlign({"image": image_encoder, "text": text_encoder}, recipe=recipe, dim=dim, seed=seed)
        history = model.fit(
            [FeatureStore.open(store) for store in stores],
            weights=tuple(weight) if weight else None,
            init=init,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            loss=loss,
            precision=precision,
            report_to=tuple(report_to or ()),
            output_dir=output,
            data_name=", ".join(store.name for store in stores),
            seed=seed,
        )
        model.save_pretrained(output)
    typer.echo(f"{history.plan}\n{len(history.steps):,} steps. Saved {output}")


@app.command()
def rank(
    data: Annotated[
        str,
        typer.Argument(
            help="Captioned pictures: openmoji, tuxpaint (with --stamps), a folder, a .csv, .tsv, .jsonl or .parquet "
            "file, or webdataset shards. A few hundred pairs tell much, a few thousand are plenty."
        ),
    ],
    vision: Annotated[list[str], typer.Option(help="Image encoder; repeat it for several.")],
    text: Annotated[list[str], typer.Option(help="Text encoder; repeat it for several.")],
    output: Annotated[Path, typer.Option(help="Folder for ranking.json, ranking.png and features/.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Measure; the first decides. cka and mutual_knn by default.")
    ] = None,
    layers: Annotated[Layers, typer.Option(help="all also finds which layers are most alike.")] = "last",
    max_items: Annotated[int, typer.Option(min=4, help="Items for measures that compare all with all.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a forward pass.")] = 32,
    stamps: Annotated[Path | None, typer.Option(help="Folder of the Tux Paint stamps.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, shuffles and halves.")] = 0,
) -> None:
    """Find the vision and text encoder whose spaces are most alike, **before** training anything.

    Measures every image encoder with every text encoder, prints the ranking with 95% intervals and calibrated scores
    (0 = not above shuffled pairs), and says which pair to take. Features are kept in the output folder: with one more
    encoder, only that one runs.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    with _plain_errors():
        from freezealign.alignment import rank_encoders

        ranking = rank_encoders(
            vision,
            text,
            _captioned(data, stamps),
            metrics=metric or ("cka", "mutual_knn"),
            layers=layers,
            path=output / "features",
            max_items=max_items,
            batch_size=batch_size,
            seed=seed,
        )
        ranking.save(output)
    console = Console()
    for header, rows in (ranking.cost_summary(), ranking.summary()):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for title in header:
            table.add_column(title, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(ranking.recommendation(), highlight=False)
    console.print(f"Saved [bold]{output}[/]: ranking.json, ranking.png, features/")


def _captioned(data: str, stamps: Path | None) -> Any:
    """Return what a name of sample data stands for, with English captions; any other name as it is."""
    if data not in ("openmoji", "tuxpaint"):
        return data
    from freezealign.demo.run import load_data

    samples = load_data(data, stamps).samples
    return [{"image": sample.image, "text": sample.captions["en"], "id": sample.key} for sample in samples]


@app.command()
def curate(
    pools: Annotated[
        list[str],
        typer.Argument(
            help="The pool: a feature store, a folder of .npy files as clip-retrieval writes them, or Parquet files. "
            "Several: the same pairs seen by several encoders."
        ),
    ],
    concepts: Annotated[
        Path,
        typer.Option(
            help="A folder with a sub-folder of pictures for each concept, a .txt file with a name a line (with "
            "--modality text), or saved prototypes (.safetensors)."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for ids.txt, selection.parquet, card.md and its figures.")],
    modality: Annotated[Modality, typer.Option(help="The features to compare with the concepts.")] = "image",
    encoder: Annotated[
        list[str] | None, typer.Option(help="What made the features of each pool, where the pool does not tell.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Pictures a concept; all by default.")] = None,
    template: Annotated[list[str] | None, typer.Option(help="Prompt for names, with {}; repeatable.")] = None,
    per_concept: Annotated[int, typer.Option(min=1, help="The most pairs a concept takes.")] = 2000,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Pairs looked at for each concept; 4 times as many by default.")
    ] = None,
    min_words: Annotated[int | None, typer.Option(min=1, help="Words a caption has at least.")] = None,
    max_words: Annotated[int | None, typer.Option(min=1, help="Words a caption has at most.")] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Leave out captions clearly not in this language (en, de, …); repeatable.")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="Least image–text cosine, if the pool states it.")
    ] = None,
    equal_captions: Annotated[bool, typer.Option("--one-of-equal-captions", help="Keep one pair a caption.")] = False,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Cosine from which on two candidates count as one, such as 0.95.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A test set, in any form of a pool: what is like it is left out.")
    ] = None,
    exclude_threshold: Annotated[
        float | None, typer.Option(help="Cosine from which on that is so; 0.95 by default.")
    ] = None,
    engine: Annotated[
        CurationEngine, typer.Option(help="ray divides the pool among machines; faiss searches approximately.")
    ] = "local",
    device: Annotated[str, typer.Option(help="Where matrix products run: cpu, cuda, …")] = "cpu",
    scores: Annotated[
        Path | None, typer.Option(help="Folder of the pass over the pool, for runs with other filters to share.")
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(help="Where the pool's pictures are, as for 'freezealign extract': for a sheet.")
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="Webdataset shards of the pool; the selected samples are copied to subset/.")
    ] = None,
    mix_with: Annotated[
        list[str] | None, typer.Option(help="Another pool to train on beside the selection; prints --weight.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=1, help="Of that mixture: 1 keeps the sizes, large draws equally.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of shots and the card's sample of the pool.")] = 0,
) -> None:
    """Select a balanced, deduplicated training set for your concepts out of a large pool of pairs.

    Each concept, the rarest first, takes the pairs most like its examples; each pair is taken once. Run it again after
    an interruption, and it goes on. The data card in `card.md` says what was selected, removed, and covered.
    """
    with _plain_errors():
        from freezealign import curation
        from freezealign.curation.concepts import read_concepts
        from freezealign.files import write_json_atomically

        for option, value, other, needed in (
            ("--exclude-threshold", exclude_threshold, "--exclude", exclude),
            ("--temperature", temperature, "--mix-with", mix_with),
        ):
            if value is not None and not needed:
                raise ValueError(f"{option} goes with {other}.")
        opened = [curation.open_pool(pool, modality) for pool in pools]
        tar_files = curation.find_shards(shards) if shards else []
        sizes = {name: len(curation.open_pool(name, modality)) for name in mix_with or ()}
        names: list[str | None] = [*encoder] if encoder else [None] * len(opened)
        if len(names) != len(opened):
            raise ValueError(f"{len(opened)} pools need as many --encoder, got {len(names)}.")
        prototypes = [
            read_concepts(concepts, pool, modality, name, shots, template or ("{}",), seed)
            for pool, name in zip(opened, names)
        ]
        tests = {name: curation.open_pool(name, modality) for name in exclude or ()}
        filters = (
            curation.CaptionLength(min_words or 1, max_words) if min_words or max_words else None,
            curation.Language(tuple(language)) if language else None,
            curation.StatedSimilarity(min_similarity) if min_similarity is not None else None,
            curation.Leaks(tests, opened[0], exclude_threshold or curation.THRESHOLD) if tests else None,
            curation.EqualCaptions() if equal_captions else None,
            curation.NearDuplicates(opened[0], near_duplicates) if near_duplicates is not None else None,
        )
        found = curation.curate(
            opened,
            prototypes,
            output,
            per_concept=per_concept,
            candidates=candidates,
            filters=[one for one in filters if one is not None],
            engine=engine,
            device=device,
            scores=scores,
            pictures=pictures,
            seed=seed,
        )
        if tar_files:
            for name, damage in curation.write_subset(tar_files, found.ids, output / "subset").items():
                typer.secho(f"{name}: {' '.join(damage)}", fg="yellow", err=True)
        if mix_with:
            sizes = {str(output / "features"): len(found.selection), **sizes}
            weights = curation.mixing_weights(sizes, temperature or 1)
            write_json_atomically(output / "weights.json", weights)
            for name, weight in weights.items():
                typer.echo(f"--weight {weight:.4g}  for {name}")
    typer.echo(f"{len(found.selection):,} of {len(opened[0]):,} pairs. Saved {output}: card.md, selection.parquet, …")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder that 'freezealign train' wrote, or a hub id.")],
    suite: Annotated[str, typer.Argument(help="A suite's YAML file, or one that comes along: offline, poster.")],
    output: Annotated[Path, typer.Option(help="Folder for results, pictures, report.md and report.html.")],
    data: Annotated[Path, typer.Option(help="Folder that the suite's paths start from.")] = Path(),
    name: Annotated[str | None, typer.Option(help="What the model is called there, else as its folder.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task of the suite; repeat it for several.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a forward pass.")] = 32,
) -> None:
    """Evaluate a model on a suite of tasks and write one report.

    Finished tasks are kept: run it again after an interruption and it goes on; run it with another model and the same
    `--output`, and the report puts both side by side. A task whose data is not there is noted, and the others are run.
    `freezealign eval my-model offline --data . --output results/` needs only the Tux Paint stamps (`make stamps`).
    """
    with _plain_errors():
        from freezealign.evaluation.suites import run_suite
        from freezealign.model import FreezeAlign

        records = run_suite(
            FreezeAlign.from_pretrained(model),
            suite,
            output,
            name=name or Path(model).resolve().name,
            root=data,
            tasks=task,
            batch_size=batch_size,
            announce=typer.echo,
        )
    failed = [key for key, record in records.items() if "error" in record]
    typer.echo(f"{len(records) - len(failed)} of {len(records)} tasks. Saved {output}: report.md, report.html")
    if failed:
        raise typer.Exit(1)


@app.command()
def toy(
    output: Annotated[Path, typer.Option(help="Folder for toy.csv, toy.json and toy.png.")] = Path("toy-output"),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer and smaller spaces, trained for fewer steps: seconds instead of a minute. It shows what "
            "the study does; its numbers are too uncertain to learn from.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the spaces and of training.")] = 0,
) -> None:
    """Show on synthetic spaces that alignment before training predicts the loss after it, and where it does not."""
    with _plain_errors():
        from freezealign.alignment.toy import ToySettings, describe, run_toy

        study = run_toy(output, ToySettings.small(seed=seed) if quick else ToySettings(seed=seed))
    typer.echo(f"{describe(study)}\nSaved {output}: toy.csv, toy.json, toy.png")


@app.command()
def encoders(
    modality: Annotated[str | None, typer.Argument(help="Only those of one modality: image or text.")] = None,
) -> None:
    """List the short names of encoders. Any Hugging Face id or local folder works too."""
    from rich.console import Console
    from rich.table import Table

    from freezealign.encoders.registry import list_encoders

    table = Table("name", "modality", "backend", "from")
    for reference in list_encoders(modality):
        origin = f"package {reference.package}" if reference.package else reference.source
        table.add_row(reference.name, reference.modality, reference.backend, origin)
    Console().print(table)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show what went wrong as one message instead of a traceback, and exit with 1."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        typer.secho(f"freezealign: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
