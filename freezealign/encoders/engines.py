"""Engines: what runs the tensor part of a frozen encoder (torch, OpenVINO or ONNX Runtime), and in which precision.

What is chosen when, and how far vectors may differ: docs/encoders.md, "Engines".
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from freezealign.batch import Features, to_device
from freezealign.encoders.base import Encoder, tensor_of
from freezealign.encoders.conversion import ENGINES, Tensors, converted, kept_folder, openvino_core
from freezealign.modality import modality_of

logger = logging.getLogger(__name__)

Runner = Callable[[Tensors], Tensors]

PRECISIONS = ("float32", "bfloat16")
TOLERANCE = 0.999
"""Least cosine to what torch gives in float32, of summary vectors and of mean tokens."""
COMPARED = 8
"""Items of a first batch that are run through both."""


class EngineError(ValueError):
    """What was asked for cannot run an encoder, or gives other vectors: no fault of any item."""


class Choice(NamedTuple):
    """An engine and its precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


EXACT = Choice("torch", "float32")
"""What every other choice is compared with, and what features are of that do not say what made them."""


@cache
def default_choices(device: str) -> tuple[Choice, ...]:
    """Return what may run encoders on a kind of device, the fastest first; the last is :data:`EXACT`."""
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return (EXACT,)
    if device != "cpu":
        return Choice("torch", "bfloat16"), EXACT
    if importlib.util.find_spec("openvino") is None:
        return (EXACT,)
    precisions = ("bfloat16", "float32") if "BF16" in openvino_core()[1] else ("float32",)
    return (*(Choice("openvino", precision) for precision in precisions), EXACT)


class Engine:
    """How a frozen encoder is run; what was not asked for is decided at the first batch, on the encoder's device.

    A copy or a pickle of it converts anew.

    Args:
        encoder: The encoder.
        name: ``torch``, ``openvino`` or ``onnx``; by default what is fastest of what is installed.
        precision: ``float32`` or ``bfloat16``; by default what is fastest.
        compile: Run it through ``torch.compile``.

    Raises:
        ModuleNotFoundError: If a package is not installed.
        ValueError: If there is no such engine, or this encoder cannot run in it.
    """

    def __init__(
        self, encoder: Encoder, name: str | None = None, precision: str | None = None, compile: bool = False
    ) -> None:
        if name is not None and name not in ENGINES:
            raise ValueError(f"unknown backend {name!r}; choose one of {list(ENGINES)}.")
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(f"unknown dtype {precision!r}; choose one of {list(PRECISIONS)}.")
        if compile and name not in (None, "torch"):
            raise ValueError(f"compile=True is for torch; leave it out, or backend={name!r}.")
        if missing := [package for package in ENGINES.get(name or "", ()) if importlib.util.find_spec(package) is None]:
            raise ModuleNotFoundError(
                f"backend={name!r} needs {' and '.join(missing)}; run: pip install 'freezealign[{name}]'"
            )
        if (name, precision) == ("onnx", "bfloat16"):
            raise ValueError("ONNX Runtime runs encoders in float32 here; for bfloat16 take backend='openvino'.")
        self.name, self.precision, self.compile = "torch" if compile else name, precision, compile
        if not encoder.has_graph and (compile or not set(self.asked) <= {None, *EXACT}):
            raise ValueError(
                f"{type(encoder).__name__} is run as it is, in torch and float32: it is no graph of tensors that could "
                "be converted. Leave out dtype, backend and compile."
            )
        self._told = False
        self._forget()

    def _forget(self) -> None:
        self.choice: Choice | None = None
        self._device: torch.device | None = None
        self._runners: dict[Any, tuple[Choice, Runner]] = {}
        self._compared: set[Any] = set()
        self._identity: tuple[str, str] | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("name", "precision", "compile", "_told")
        return {key: value for key, value in vars(self).items() if key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def asked(self) -> tuple[str | None, str | None]:
        """Engine and precision that were asked for."""
        return self.name, self.precision

    def run(self, encoder: Encoder, batch: Features) -> Features:
        """Return what the encoder gives for a batch.

        Raises:
            EngineError: If what was asked for cannot run this encoder, or gives other vectors.
        """
        if (only := _as_it_is(encoder)) is not None:
            self.choice = only
            if self.compile or any(own not in (None, given) for own, given in zip(self.asked, only)):
                raise EngineError(f"this encoder's weights are {only.precision}: leave out dtype, backend and compile.")
            return encoder(batch)
        inputs, device = encoder.graph_inputs(batch), tensor_of(encoder).device
        key = (device, *(value.shape[2:] for value in inputs.values()))  # a graph for each size of pictures
        with self._lock:
            if key not in self._compared:
                self._decide(encoder, batch, device, key)
            choice, runner = self._runners[key]
        if choice == EXACT and not self.compile:
            return encoder(batch)
        try:
            outputs = runner(inputs)
        except RuntimeError as error:
            if choice.engine == "torch":
                raise
            with self._lock:
                self._decide(encoder, batch, device, key, {choice: str(error)})
            return self.run(encoder, batch)
        return encoder.finish(outputs, batch)

    @contextmanager
    def settled(self, encoder: Encoder, first: Callable[[], Features | None]) -> Iterator[Choice]:
        """Let nothing run the encoder while the block runs but what does now, or what its ``first`` batch decides.

        Where there is no first batch that can be had, sample inputs decide, and what is run first is compared then.
        """
        before, device = (self.name, self.precision, self._told), tensor_of(encoder).device
        choices, known = self._choices(device), self.choice if device == self._device else None
        self.choice = known or _as_it_is(encoder) or (choices[0] if len(choices) == 1 else None)
        if self.choice is None and (batch := first()) is not None:
            try:
                self.run(encoder, batch)
            except EngineError:
                raise
            except Exception as error:  # one of its items may be bad, and is found when its turn has come
                logger.info("the first batch does not tell what runs the %s encoder: %s", encoder.modality, error)
        if self.choice is None and (probes := _probes(encoder.modality)):
            self.run(encoder, to_device(encoder.preprocess(probes), device))
            self._compared.clear()
        choice = self.choice or EXACT
        if choice.precision in PRECISIONS:
            self.name, self.precision, self._told = *choice, True
        try:
            yield choice
        finally:
            self.name, self.precision, self._told = before

    def _choices(self, device: torch.device) -> list[Choice]:
        name, precision = self.asked
        found = default_choices(device.type)
        if name is None and precision is not None:
            return [Choice(own, precision) for own in dict.fromkeys(choice.engine for choice in found)]
        if name is not None and precision is not None:
            return [Choice(name, precision)]
        return [choice for choice in found if name in (None, choice.engine)] or [Choice(str(name), "float32")]

    @torch.no_grad()
    def _decide(
        self,
        encoder: Encoder,
        batch: Features,
        device: torch.device,
        key: Any,
        failed: Mapping[Choice, str] = MappingProxyType({}),
    ) -> None:
        """Set the first choice that runs a batch and agrees with :data:`EXACT`."""
        sample = _sample(encoder, batch)
        inputs = encoder.graph_inputs(sample)
        expected, faults, disagreeing = encoder.graph(inputs), dict(failed), set()
        for choice in self._choices(device):
            if choice in faults:
                continue
            if choice == EXACT and not self.compile:
                runner: Runner = encoder.graph
                break
            kept = partial(self._kept, encoder, choice.engine, inputs)
            try:
                known, runner = self._runners.get(key, (None, encoder.graph))
                if known != choice:
                    runner = _build(encoder, choice, inputs, list(expected), device, self.compile, kept)
                found = runner(inputs)
            except Exception as error:
                faults[choice] = f"{type(error).__name__}: {error}"[:300]
            else:
                worst = _agreement(encoder.finish(expected, sample), encoder.finish(found, sample))
                if worst >= TOLERANCE:
                    break
                disagreeing.add(choice)
                faults[choice] = f"cosine {worst:.4f} to torch in float32, less than {TOLERANCE}"
                if choice.engine != "torch" and choice.precision == "float32":  # what is kept may be damaged
                    shutil.rmtree(kept(), ignore_errors=True)
        else:
            told = "; ".join(f"{choice}: {fault}" for choice, fault in faults.items())
            begun = " It was begun so, and what was begun is not continued otherwise." if self._told else ""
            raise EngineError(
                f"this {encoder.modality} encoder cannot be run as asked ({told}).{begun} Choose dtype='float32' "
                "and backend='torch', or leave them out."
            )
        for other, fault in faults.items():
            tell = warnings.warn if other in disagreeing else logger.warning
            tell(f"{other} is not used for this {encoder.modality} encoder: {fault}. {choice} runs it.")
        self._runners[key] = choice, runner
        self._compared.add(key)
        if failed or self.choice is None or device != self._device:
            self.choice, self._device = choice, device

    def _kept(self, encoder: Encoder, engine: str, inputs: Tensors) -> Path:
        """Return where a conversion is kept; what tells the encoder is read from all its weights, once."""
        self._identity = self._identity or (encoder.fingerprint(), encoder.configuration)
        return kept_folder(encoder, engine, inputs, *self._identity)


def _as_it_is(encoder: Encoder) -> Choice | None:
    """Return what runs an encoder that is no graph, or whose weights are not in float32: torch, without a choice."""
    if not encoder.has_graph:
        return EXACT
    tensor = tensor_of(encoder)
    if not tensor.is_floating_point() or tensor.dtype == torch.float32:
        return None
    return Choice("torch", str(tensor.dtype).removeprefix("torch."))


def _probes(modality: str) -> list[Any]:
    """Return some inputs, among them such that low precision finds hard: drawings, flat but for their edges."""
    if modality == "image":
        rng = np.random.default_rng(0)
        coarse = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for side in (2, 4, 8, 16)]
        ways = (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
        return [picture.resize((256, 256), way) for picture in coarse for way in ways]
    probe = modality_of(modality).probe
    if modality == "text":
        return [probe, f"a longer {probe} of seven words", f"and one more {probe}"]
    return [] if probe is None else [probe]


def _sample(encoder: Encoder, batch: Features) -> Features:
    """Return the first items of a batch; of texts, the last one a token shorter, so that there is padding."""
    sample = {key: value[:COMPARED] if isinstance(value, Tensor) else value for key, value in batch.items()}
    mask = sample.get("attention_mask")
    if encoder.modality == "text" and mask is not None and mask.shape[1] > 2:
        sample["attention_mask"] = mask = mask.clone()
        mask[-1, -1] = 0
    return sample


def _agreement(expected: Features, found: Features) -> float:
    """Return the least cosine of summary vectors and of mean tokens, of the items that are finite in torch."""
    worst = 1.0
    for key in ("sentence_embedding", "cls_token_embeddings", "token_embeddings"):
        if key not in expected:
            continue
        pair = [features[key].float() for features in (expected, found)]
        if key == "token_embeddings":
            mask = expected.get("attention_mask")
            pair = [tokens.mean(1) if mask is None else (tokens * mask[..., None]).sum(1) for tokens in pair]
        has_direction = torch.isfinite(pair[0]).all(1) & pair[0].ne(0).any(1)
        if has_direction.any():
            cosines = functional.cosine_similarity(*(vectors[has_direction].double() for vectors in pair))
            worst = min(worst, float(cosines.nan_to_num(-1).min()))
    return worst


def _build(
    encoder: Encoder,
    choice: Choice,
    inputs: Tensors,
    names: list[str],
    device: torch.device,
    compile: bool,
    kept: Callable[[], Path],
) -> Runner:
    """Return what runs the encoder's graph.

    Args:
        encoder: The encoder.
        choice: In what.
        inputs: An example, of any number of items.
        names: Of the graph's outputs, in order.
        device: Where the encoder is.
        compile: Whether torch compiles it.
        kept: Gives the folder where a conversion is kept.
    """
    if choice.engine == "torch":
        graph = torch.compile(encoder.graph) if compile else encoder.graph

        def run(inputs: Tensors) -> Tensors:
            with torch.autocast(device.type, torch.bfloat16, enabled=choice.precision == "bfloat16"):
                outputs = graph(inputs)
            return {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}

        return run
    call = converted(encoder, choice.engine, choice.precision, inputs, kept())

    def convert(inputs: Tensors) -> Tensors:
        arrays = call([np.ascontiguousarray(value.cpu().numpy()) for value in inputs.values()])
        return {name: torch.from_numpy(array).to(device) for name, array in zip(names, arrays)}

    return convert
