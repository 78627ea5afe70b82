"""Backend ``timm``: vision models of PyTorch Image Models, ViT and CNN alike."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freezealign.batch import Features
from freezealign.encoders.base import EncoderReference, VisionEncoder, flatten_map, split_tokens
from freezealign.encoders.folder import PICKLED, check_capacity, no_safetensors
from freezealign.encoders.identity import modules_digest
from freezealign.encoders.packaged import PACKAGES
from freezealign.files import read_json

IMAGENET_CLASSES = 1000


class TimmEncoder(VisionEncoder):
    """A timm model with the preprocessing of its pretrained configuration.

    Args:
        model: Made by ``timm.create_model``; ``forward_features`` gives tokens or a feature map.
        image_size: Pixels a side instead of the configuration's.
    """

    def __init__(self, model: Any, image_size: int | None = None) -> None:
        super().__init__()
        from timm.data import create_transform, resolve_model_data_config

        if image_size and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=image_size)
        # Convolutions run about twice as fast with the channels last, on CPU and GPU alike.
        self.modality, self.model = "image", model.to(memory_format=torch.channels_last)
        self.dim: int = model.num_features
        self._settings = resolve_model_data_config(model)
        if image_size:
            self._settings |= {"input_size": (3, image_size, image_size)}
        self._transform = create_transform(**self._settings, is_training=False)

    def preprocess(self, items: list[Any]) -> Features:
        """Return ``pixel_values`` (B, 3, H, W) of RGB PIL images."""
        return {"pixel_values": torch.stack([self._transform(image) for image in items])}

    def graph(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tokens or a feature map, and what the model's own attention pools of it."""
        return self._pooled(self.model.forward_features(self._pixels(inputs)))

    def finish(self, outputs: dict[str, Tensor], batch: Features) -> Features:
        """Return patches, summary vector and grid; see :class:`Encoder`."""
        return self._features(outputs, batch["pixel_values"])

    def forward_layers(self, batch: Features) -> list[Features]:
        """Return the features after every block of a ViT, or after every stage of a CNN as timm counts them.

        The last layer includes what follows the last block or stage, such as a final norm or a convolution. Before it,
        the summary of a model without CLS is the mean of its patches.
        """
        if not hasattr(self.model, "forward_intermediates"):
            return super().forward_layers(batch)
        pixels = self._pixels(batch)
        accepted = inspect.signature(self.model.forward_intermediates).parameters
        prefixed = "return_prefix_tokens" in accepted and getattr(self.model, "num_prefix_tokens", 0) > 0
        options = {"return_prefix_tokens": True} if prefixed else {}  # CLS and registers beside every map
        states, inner = self.model.forward_intermediates(pixels, **options)
        features = []
        for entry in inner[:-1]:  # a map (B, D, rows, columns), or one and its prefix tokens (B, P, D)
            feature_map, prefix = entry if prefixed else (entry, None)
            summary = prefix[:, 0] if prefix is not None and self._has_cls else None
            features.append(flatten_map(feature_map, summary))
        return [*features, self._features(self._pooled(states), pixels)]

    def _pixels(self, batch: Features) -> Tensor:
        return super()._pixels(batch).contiguous(memory_format=torch.channels_last)

    @property
    def _has_cls(self) -> bool:
        return getattr(self.model, "cls_token", None) is not None

    def _pooled(self, states: Tensor) -> dict[str, Tensor]:
        if getattr(self.model, "attn_pool", None) is None:
            return {"states": states}
        return {"states": states, "pooled": self.model.forward_head(states, pre_logits=True)}

    def _features(self, outputs: dict[str, Tensor], pixels: Tensor) -> Features:
        """Return patches, summary vector and grid of what the graph gives."""
        model, states, pooled = self.model, outputs["states"], outputs.get("pooled")
        if states.ndim == 3:
            rows, columns = model.patch_embed.dynamic_feat_size(pixels.shape[-2:])
            return split_tokens(states, (rows, columns), pooled, self._has_cls)
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return flatten_map(states.permute(0, 3, 1, 2) if channels_last else states, pooled)

    def classifier(self) -> tuple[Tensor, list[str]] | None:
        """Return the classifier's weights (1000, dim) and the names of ImageNet's classes, where those are its own."""
        from timm.data import ImageNetInfo

        weight = getattr(self.model.get_classifier(), "weight", None)
        if weight is None or weight.shape != (IMAGENET_CLASSES, self.dim):
            return None
        info = ImageNetInfo()
        return weight.detach().cpu(), [info.index_to_description(index) for index in range(IMAGENET_CLASSES)]

    @property
    def center_crop_share(self) -> float:
        """The share of a square picture's side that preprocessing keeps."""
        return min(1.0, float(self._settings["crop_pct"]))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Size, crop, interpolation, mean and standard deviation."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self._settings.items()}

    @property
    def configuration(self) -> str:
        """A digest of the settings of every layer, as timm's models keep no configuration."""
        return modules_digest(self.model)


def load(folder: Path, reference: EncoderReference, allow_pickle: bool, model_kwargs: dict[str, Any]) -> TimmEncoder:
    """Load a timm model: of a package, architecture and tensors in order; else configuration and weights of ``folder``.

    Raises:
        ValueError: If the folder has no weights that may be opened, or they lack some of the model's.
    """
    import timm

    if reference.package:
        model = timm.create_model(reference.source, pretrained=False, **model_kwargs)
        load_in_order(model, folder / next(iter(PACKAGES[reference.package].files)))
        return TimmEncoder(model, reference.image_size)
    source = f"local-dir:{folder}"
    arguments = read_json(folder / "config.json").get("model_args") or {}
    if odd := sorted(key for key in arguments if key.startswith("pretrained")):
        raise ValueError(f"{folder / 'config.json'}: {odd} are no arguments of a model; it is damaged.")
    patterns = ("model.safetensors", "*.safetensors", *(PICKLED if allow_pickle else ()))
    weights = next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
    if weights is None:
        raise no_safetensors(reference.name)
    check_capacity(folder, lambda: timm.create_model(source, pretrained=False, **model_kwargs))
    # the file to load, whatever else the configuration names
    own = {"source": "", "file": str(weights), "state_dict": None, "custom_load": False}
    model = timm.create_model(source, pretrained=True, pretrained_cfg_overlay=own, **model_kwargs)
    return TimmEncoder(model, reference.image_size)


def load_in_order(model: nn.Module, path: Any) -> None:
    """Load a state dict whose tensors are the model's own one for one, in order and shape, under other names.

    Raises:
        ValueError: If any shape differs.
    """
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    names = model.state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in names.values()]:
        raise ValueError(f"{path}: its tensors are not those of {type(model).__name__}, in order and shape.")
    model.load_state_dict(dict(zip(names, tensors.values())))
