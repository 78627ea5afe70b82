"""The model card: which encoders, which data, which scores, and code that runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezealign.files import write_atomically
from freezealign.inputs import skipped_pairs
from freezealign.training.arguments import NEUTRAL

if TYPE_CHECKING:
    from freezealign.space.space import Space
    from freezealign.training import FitArguments, History

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

A freezealign model: frozen encoders, one shared {{ dim }}-dimensional space.
{{ trainable }} of {{ total }} parameters were trained; the encoders are referred to, not contained.

| tower | encoder | width | revision | SHA-256 of its tensors |
|---|---|---|---|---|
{{ encoders }}

## Use

```python
from freezealign import FreezeAlign

model = FreezeAlign.from_pretrained("{{ model_id }}")
{{ usage }}
```

The folder also opens with sentence-transformers where freezealign is installed:
`SentenceTransformer("{{ model_id }}", trust_remote_code=True)`.

## Training

{{ training }}

## Evaluation

{{ evaluation }}
"""

USAGE = {
    "image": 'images = model.encode_image(["photo.jpg"])',
    "text": 'texts = model.encode_text(["a red apple", "ein roter Apfel"])',
}


TRAINING = {"data_name": str, "pairs": (int, type(None)), "skipped": int}
"""What the card reads of a training."""


@dataclass
class CardData:
    """What a model card says beyond what the model itself knows.

    Args:
        training: Data, number of pairs, and arguments of the last ``fit``.
        evaluations: Name and scores of every evaluation.
    """

    training: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)

    def record_training(self, arguments: FitArguments, pairs: int | None, history: History) -> None:
        """Note what ``fit`` did."""
        chosen = {key: value for key, value in asdict(arguments).items() if key not in NEUTRAL and value is not None}
        self.training = {
            "data_name": arguments.data_name,
            "pairs": pairs,
            "skipped": len(skipped_pairs(history.skipped)),
            "steps": len(history.steps),
            "final_loss": history.losses[-1] if history.losses else None,
            "plan": history.plan,
            **chosen,
        }

    def set_evaluation_metrics(
        self, evaluator: Any, metrics: dict[str, float], epoch: int = -1, step: int = -1
    ) -> None:
        """Note an evaluator's scores; the name is the one sentence-transformers' evaluators call."""
        self.evaluations[getattr(evaluator, "name", "") or type(evaluator).__name__] = dict(metrics)


def write_card(model: Space, card_data: CardData, path: Path, model_id: str) -> None:
    """Write ``path/README.md``, which loads the model as ``model_id``."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="freezealign",
        pipeline_tag="feature-extraction",
        tags=["freezealign", "sentence-transformers", "multimodal", "image-text-retrieval", "zero-shot-classification"],
        base_model=_base_models(model),
    )
    encoders = model.encoders
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=" + ".join(encoder.name for encoder in encoders.values()),
        dim=model.get_embedding_dimension(),
        trainable=f"{model.num_parameters(only_trainable=True):,}",
        total=f"{model.num_parameters():,}",
        encoders="\n".join(
            f"| {name} | `{part.name}` | {part.get_embedding_dimension()} | {part.reference.revision or '–'} "
            f"| `{part.fingerprint[:16]}…` |"
            for name, encoder in encoders.items()
            for part in encoder.parts
        ),
        model_id=model_id,
        usage=_usage(model),
        training=_training(card_data),
        evaluation="\n\n".join(_score_table(*own) for own in card_data.evaluations.items()) or "Not evaluated.",
    )
    write_atomically(path / "README.md", lambda file: file.write(str(card).encode()))


def _base_models(model: Space) -> list[str]:
    """Return the hub ids among the encoders' sources; a card may name nothing else here."""
    parts = [part for encoder in model.encoders.values() for part in encoder.parts]
    sources = [part.reference.source.removeprefix("hf-hub:") for part in parts]
    return [source for source in sources if source.count("/") == 1 and not Path(source).is_dir()]


def _usage(model: Space) -> str:
    lines = [
        f'{name}s = model.encode(vectors, modality="{name}")  # (n, {encoder.get_embedding_dimension()})'
        if encoder.kind == "vector"
        else USAGE.get(name, f'{name} = model.encode(items, modality="{name}")')
        for name, encoder in model.encoders.items()
    ]
    if {"image", "text"} <= set(model.towers):
        lines.append("print(model.similarity(texts, images))")
    return "\n".join(lines)


def _training(card: CardData) -> str:
    if not card.training:
        return "Not trained: the projectors hold their initial weights."
    facts = dict(card.training)
    data, pairs, skipped = facts.pop("data_name"), facts.pop("pairs"), facts.pop("skipped")
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    count = "An unknown number of" if pairs is None else f"{pairs:,}"
    return f"{count} pairs of {data} ({skipped} skipped as unreadable).\n\n| | |\n|---|---|\n{rows}"


def _score_table(name: str, metrics: dict[str, Any]) -> str:
    """Return one evaluation: its protocol, and a row a metric with interval and chance level where it has them."""
    lines = ["| metric | value | 95% interval | chance |", "|---|---|---|---|"]
    for metric, value in metrics.items():
        if not isinstance(value, (int, float)) or metric.endswith(("_low", "_high", "_chance")):
            continue
        low, high, chance = (_decimals(metrics.get(f"{metric}_{end}")) for end in ("low", "high", "chance"))
        lines.append(f"| {metric} | {value:.4g} | {f'{low}–{high}' if low else ''} | {chance} |")
    protocol = next((f": {value}" for key, value in metrics.items() if key.endswith("protocol")), "")
    return f"**{name}**{protocol}\n\n" + "\n".join(lines)


def _decimals(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else ""
