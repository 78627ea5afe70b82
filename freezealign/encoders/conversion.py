"""Conversion of an encoder's graph for OpenVINO and ONNX Runtime, kept in the user's cache where it takes long."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from freezealign.encoders.base import Encoder
from freezealign.encoders.identity import digest

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tensors = dict[str, Tensor]

ENGINES = {"torch": (), "openvino": ("openvino",), "onnx": ("onnx", "onnxruntime")}
"""What encoders run in, and the packages that each needs; its extra has the same name."""
WORTH_KEEPING = 1.0
"""Seconds from which on a conversion is kept in the user's cache."""
LENGTHS = 8
"""Tokens that texts are padded to a multiple of in OpenVINO."""


def converted(
    encoder: Encoder, engine: str, precision: str, inputs: Tensors, folder: Path
) -> Callable[[list[Any]], Any]:
    """Return what runs an encoder's graph in ``openvino`` or ``onnx``: arrays in ``inputs``' order in, arrays out.

    Args:
        encoder: The encoder.
        engine: In what.
        precision: ``float32`` or, in OpenVINO, ``bfloat16``.
        inputs: An example, of any number of items; pictures are then read in its size only.
        folder: Where the conversion is kept, if it takes long.
    """
    if engine == "openvino":
        return _openvino_runner(encoder, inputs, folder, precision)
    return _onnx_runner(encoder, inputs, folder)


class _Graph(nn.Module):
    """An encoder's graph as tracers take it: tensors in, a tuple of tensors out."""

    def __init__(self, encoder: Encoder, names: list[str]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder.graph(dict(zip(self.names, tensors))).values())


def _trace(encoder: Encoder, inputs: Tensors) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the graph, traced, and what it was traced with: other numbers of items and tokens than are compared."""
    count = 2 if len(next(iter(inputs.values()))) != 2 else 3
    examples = []
    for value in inputs.values():
        rows = value[torch.arange(count) % len(value)].cpu()
        if rows.ndim == 2:
            rows = rows[:, :-1] if rows.shape[1] > 2 else torch.cat([rows, rows[:, -1:]], 1)
        examples.append(rows)
    on_cpu = encoder if next(encoder.parameters()).device.type == "cpu" else deepcopy(encoder).cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(_Graph(on_cpu, list(inputs)).eval(), tuple(examples), strict=False, check_trace=False)
    return graph, tuple(examples)


def kept_folder(encoder: Encoder, engine: str, inputs: Tensors, fingerprint: str, configuration: str) -> Path:
    """Return the folder of the user's cache where a conversion is kept: known by all that it depends on."""
    from huggingface_hub import cached_assets_path

    packages = ("torch", "timm", "transformers", "sentence-transformers", *ENGINES[engine])
    versions = [metadata.version(package) for package in packages]
    shapes = [[name, list(value.shape[2:])] for name, value in inputs.items()]
    made = [type(encoder).__name__, configuration, getattr(encoder, "_options", None)]
    identity = [fingerprint, made, engine, shapes, versions]
    return cached_assets_path("freezealign", "engines") / digest(identity)[:32]


def _keep(folder: Path, convert: Callable[[Path], None], open_one: Callable[[Path], T]) -> T:
    """Return what is opened of a conversion: of the one kept in ``folder``, else of a new one, kept if it took long."""
    if folder.is_dir():
        try:
            return open_one(folder)
        except Exception as error:
            logger.info("%s is damaged (%s); converting again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        start, made = time.perf_counter(), Path(name)
        convert(made)
        if time.perf_counter() - start > WORTH_KEEPING:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(dir=folder.parent) as beside:  # a rename puts all of it in place, or nothing
                    shutil.copytree(made, Path(beside, "whole")).rename(folder)
            except OSError as error:
                logger.info("the converted encoder is not kept: %s", error)
        return open_one(made)


@cache
def openvino_core() -> tuple[Any, list[str]]:
    """Return OpenVINO's core, and what the CPU can."""
    import openvino

    core = openvino.Core()
    return core, list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _openvino_runner(encoder: Encoder, inputs: Tensors, folder: Path, precision: str) -> Callable[[list[Any]], Any]:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    core, _ = openvino_core()
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }

    def convert(folder: Path) -> None:
        graph, examples = _trace(encoder, inputs)
        frontend = FrontEndManager().load_by_framework("pytorch")  # openvino.convert_model would report its use
        decoder = TorchScriptPythonDecoder(graph, example_input=examples)  # which has to live until the end
        model = frontend.convert(frontend.load(decoder))
        shapes = [[-1, *value.shape[1:]] if value.ndim > 2 else [-1, -1] for value in examples]
        model.reshape({place: openvino.PartialShape(shape) for place, shape in enumerate(shapes)})
        openvino.save_model(model, folder / "graph.xml", compress_to_fp16=False)

    def open_one(folder: Path) -> Any:
        return core.compile_model(core.read_model(folder / "graph.xml"), "CPU", hints)

    compiled, own = _keep(folder, convert, open_one), threading.local()

    def call(arrays: list[Any]) -> Any:
        if not hasattr(own, "request"):  # one cannot be shared by threads
            own.request = compiled.create_infer_request()
        if "attention_mask" not in inputs:
            return own.request.infer(arrays, share_inputs=True).values()
        length = arrays[0].shape[1]  # every new one takes a tenth of a second to prepare, so some share one
        more = min(-(-length // LENGTHS) * LENGTHS, max(encoder.max_length or length, length)) - length
        arrays = [np.pad(array, ((0, 0), (0, more))) for array in arrays]
        results = own.request.infer(arrays, share_inputs=True).values()
        return [array[:, :length] if array.ndim == 3 else array for array in results]

    return call


def _onnx_runner(encoder: Encoder, inputs: Tensors, folder: Path) -> Callable[[list[Any]], Any]:
    import onnxruntime

    options, names = onnxruntime.SessionOptions(), list(inputs)
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3

    def convert(folder: Path) -> None:
        graph, examples = _trace(encoder, inputs)
        axes = {name: {0: "items"} | ({1: "tokens"} if inputs[name].ndim == 2 else {}) for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = folder / "graph.onnx"
            torch.onnx.export(graph, examples, path, input_names=names, dynamic_axes=axes, dynamo=False)

    def open_one(folder: Path) -> Any:
        return onnxruntime.InferenceSession(folder / "graph.onnx", options, providers=["CPUExecutionProvider"])

    session = _keep(folder, convert, open_one)
    return lambda arrays: session.run(None, dict(zip(names, arrays)))
