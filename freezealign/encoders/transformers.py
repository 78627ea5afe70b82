"""Backend ``transformers``: vision and text models of Hugging Face Transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from freezealign.batch import Features
from freezealign.encoders.base import Encoder, EncoderReference, VisionEncoder, flatten_map, split_tokens
from freezealign.encoders.folder import check_capacity
from freezealign.encoders.identity import settings_digest
from freezealign.encoders.text import TextEncoder

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""For everything that reads a folder: without it a user at a terminal is asked whether to run the folder's code."""
ROBERTA_LIKE = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Model types whose first positions stand for padding."""


class TransformersVisionEncoder(VisionEncoder):
    """A ViT-like or convolutional vision model with its own image processor.

    Args:
        model: Gives ``last_hidden_state`` as tokens (B, T, D) or as a feature map (B, D, rows, columns).
        processor: Its image processor; mean, standard deviation, size and crop come from there.
        image_size: Pixels a side instead of the processor's own; what is done with the shorter side stays the same.

    Raises:
        ValueError: If the model does not state its width, or reads images of one size only.
    """

    def __init__(self, model: nn.Module, processor: Any, image_size: int | None = None) -> None:
        super().__init__()
        self.modality, self.model, self.processor = "image", model, processor
        config: Any = model.config
        widths = getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", None)]
        width = getattr(config, "output_channels", None) or widths[-1]
        if width is None:
            raise ValueError(
                f"a model of type '{config.model_type}' does not state its width; load it with timm instead."
            )
        self.dim = int(width)
        self._sizes: dict[str, Any] = {}
        self._options: dict[str, Any] = {}
        if image_size is None:
            return
        own = {key: value for key, value in dict(processor.to_dict().get("size") or {}).items() if value is not None}
        if not {"shortest_edge", "height"} & set(own):
            raise ValueError(f"image_size={image_size}: this encoder reads one size only, {own}; leave it out.")
        square = {"height": image_size, "width": image_size}
        self._sizes = {"size": square}
        if "shortest_edge" in own:
            self._sizes = {"size": {"shortest_edge": image_size}, "crop_size": square, "do_center_crop": True}
        if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            self._options = {"interpolate_pos_encoding": True}

    def preprocess(self, items: list[Any]) -> Features:
        """Return ``pixel_values`` (B, 3, H, W) of RGB PIL images."""
        batch = self.processor(images=items, return_tensors="pt", **self._sizes)
        return {"pixel_values": batch["pixel_values"]}

    def graph(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tokens or a feature map, and the model's own pooled output where it has one."""
        output, _ = self._run(inputs)
        pooled = getattr(output, "pooler_output", None)
        return {"states": output.last_hidden_state, **({} if pooled is None else {"pooled": pooled})}

    def finish(self, outputs: dict[str, Tensor], batch: Features) -> Features:
        """Return patches, summary vector and grid; see :class:`Encoder`."""
        height, width = batch["pixel_values"].shape[-2:]
        return self._features(outputs["states"], (height, width), outputs.get("pooled"))

    def forward_layers(self, batch: Features) -> list[Features]:
        """Return the features after every block of a ViT or every stage of a convolutional model, without final norm.

        Before the last layer, the summary of a model without CLS is the mean of its patches.
        """
        output, size = self._run(batch, output_hidden_states=True)
        config: Any = self.model.config
        features = []
        for states in inner_states(getattr(output, "hidden_states", None), config):
            # a ViT that works on a map, such as SAM's, has its channels last
            is_last = states.ndim == 4 and not hasattr(config, "hidden_sizes")
            features.append(self._features(states.permute(0, 3, 1, 2) if is_last else states, size))
        return [*features, self._features(output.last_hidden_state, size, getattr(output, "pooler_output", None))]

    def _run(self, batch: Features, **options: Any) -> tuple[Any, tuple[int, int]]:
        """Return what the model gives, and height and width of what it was given."""
        pixels = self._pixels(batch)
        return self.model(pixel_values=pixels, **options, **self._options), (pixels.shape[-2], pixels.shape[-1])

    def _features(self, states: Tensor, size: tuple[int, int], pooled: Tensor | None = None) -> Features:
        """Return patches, summary vector and grid of tokens (B, T, D) or of a map (B, D, rows, columns)."""
        if states.ndim == 4:
            return flatten_map(states, pooled)
        config: Any = self.model.config
        # A ConvNeXt halves the image five times in all; other token models name their patch.
        stride = getattr(config, "patch_size", None) or 2 ** (len(config.hidden_sizes) + 1)
        down, across = (stride, stride) if isinstance(stride, int) else stride
        rows, columns = size[0] // down, size[1] // across
        while hasattr(config, "depths") and rows * columns > states.shape[1]:  # a Swin halves its grid on the way
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return split_tokens(states, (rows, columns), pooled)

    @property
    def center_crop_share(self) -> float:
        """The share of a square picture's side that the processor keeps."""
        settings = self.preprocessing
        if not settings.get("do_center_crop"):
            return 1.0
        side = settings["size"].get("shortest_edge") or settings["size"]["height"]
        return min(1.0, float(settings["crop_size"]["height"] / side))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The processor's settings."""
        settings = self.processor.to_dict()
        keys = {"size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor"}
        kept = {key: value for key, value in settings.items() if key in keys or key.startswith("do_")}
        kept = {key: value for key, value in kept.items() if value is not None} | self._sizes
        return {**kept, "processor": settings_digest(settings)}


class TransformersTextEncoder(TextEncoder):
    """A text model with its tokenizer; a decoder-only model works too.

    Args:
        model: Gives ``last_hidden_state`` (B, T, D).
        tokenizer: Its tokenizer.
        max_length: Tokens a text, specials included; by default what the tokenizer states, within what the model has
            positions for.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_length: int | None = None) -> None:
        config: Any = model.config
        positions = getattr(config, "max_position_embeddings", None)
        if positions and config.model_type in ROBERTA_LIKE:
            positions -= config.pad_token_id + 1
        limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < VERY_LARGE_INTEGER]
        super().__init__(model, tokenizer, config.hidden_size, max_length or min(limits, default=None))
        # SigLIP was trained on texts padded to full length, without a mask.
        self._full_length = config.model_type.startswith("siglip")
        names, mask = set(tokenizer.model_input_names), {"attention_mask"}
        accepted = set(inspect.signature(model.forward).parameters)
        self._inputs = (names - mask if self._full_length else names | mask) & accepted

    def preprocess(self, items: list[Any]) -> Features:
        """Return ``input_ids`` and ``attention_mask`` (B, T), padded to the batch's longest text (SigLIP: in full)."""
        cut = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        padding = "max_length" if self._full_length else True
        batch = self.tokenizer(items, padding=padding, return_attention_mask=True, return_tensors="pt", **cut)
        self.warn_if_cut(items, batch["attention_mask"])
        return dict(batch)

    def graph_inputs(self, batch: Features) -> dict[str, Tensor]:
        """Return what the model reads of what the tokenizer gave."""
        return {name: batch[name] for name in sorted(self._inputs) if name in batch}

    def graph(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's token embeddings."""
        return {"token_embeddings": self._run(inputs).last_hidden_state}

    def forward_layers(self, batch: Features) -> list[Features]:
        """Return token embeddings and masks after every block, without final norm but for the last."""
        output = self._run(batch, output_hidden_states=True)
        inner = inner_states(getattr(output, "hidden_states", None), self.model.config)
        return [self.features(tokens, batch) for tokens in [*inner, output.last_hidden_state]]

    def _run(self, batch: Features, **options: Any) -> Any:
        return self.model(**self.graph_inputs(batch), **options)


def inner_states(states: Sequence[Tensor] | None, config: Any) -> list[Tensor]:
    """Return the hidden states after every block or stage but the last; none where the model does not give them.

    Most models, but not all, put the embeddings before the first block in front; these are left out.
    """
    states = states or ()
    depths = getattr(config, "depths", None)
    blocks = len(depths) if depths else getattr(config, "num_hidden_layers", len(states) - 1)
    return list(states[-blocks:-1])


def load(folder: Path, reference: EncoderReference, allow_pickle: bool, model_kwargs: dict[str, Any]) -> Encoder:
    """Load a transformers model; of a two-tower model, the tower of ``reference.modality``.

    Raises:
        ValueError: If weights that are used are not in the checkpoint; the message lists them.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    kind = checked_class(folder)
    options = {**weight_options(allow_pickle), "output_loading_info": True}
    model, report = kind.from_pretrained(folder, **options, **model_kwargs, **NO_CODE)
    tower = select_tower(model, reference.modality)
    leave_out_missing(tower, model, report, reference.name)
    if reference.modality == "image":
        processor = AutoImageProcessor.from_pretrained(folder, **NO_CODE)
        return TransformersVisionEncoder(tower, processor, reference.image_size)
    return TransformersTextEncoder(tower, AutoTokenizer.from_pretrained(folder, **NO_CODE), reference.max_length)


def weight_options(allow_pickle: bool) -> dict[str, Any]:
    """Return what weights may be read from: safetensors alone, or pickles too, by torch's loader of tensors only."""
    return {"use_safetensors": None if allow_pickle else True, "weights_only": True}


def checked_class(folder: Path) -> Any:
    """Return the class to load, its size compared with the folder's weights.

    Where a checkpoint is of an encoder alone, as of T5, there is no decoder to load.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **NO_CODE)
    named = [name for name in config.architectures or () if name.endswith("EncoderModel")]
    kind = getattr(transformers, named[0], None) if named else None
    check_capacity(folder, lambda: kind(config) if kind else transformers.AutoModel.from_config(config, **NO_CODE))
    return kind or transformers.AutoModel


def leave_out_missing(tower: Any, model: nn.Module, report: Mapping[str, Any], source: str) -> None:
    """Take out of a tower what its checkpoint lacks and nothing here reads: a pooler, which would be random.

    Raises:
        ValueError: If it lacks anything else; the message lists it.
    """
    own = {id(tensor): name for name, tensor in [*tower.named_parameters(), *tower.named_buffers()]}
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    names = [key if isinstance(key, str) else key[0] for key in missing]
    lacking = sorted(own[id(everything[name])] for name in names if id(everything.get(name)) in own)
    if getattr(tower, "pooler", None) is not None and any(name.startswith("pooler.") for name in lacking):
        tower.pooler = None
        lacking = [name for name in lacking if not name.startswith("pooler.")]
    if lacking:
        total = len(list(tower.parameters()))
        raise ValueError(
            f"'{source}' lacks {len(lacking)} of the encoder's {total} weights, which would be random: "
            f"{', '.join(lacking[:8])}{', …' if len(lacking) > 8 else ''}. Is it a checkpoint of another architecture, "
            "or a part of one?"
        )


def select_tower(model: Any, modality: str) -> Any:
    """Return the part of ``model`` that reads ``modality``: a tower of CLIP or SigLIP, SAM's encoder, T5's encoder."""
    names = ("vision_model", "vision_encoder") if modality == "image" else ("text_model",)
    for name in names:
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
