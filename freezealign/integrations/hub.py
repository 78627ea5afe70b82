"""Sharing a model on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from freezealign.hub import explain_hub_errors
from freezealign.saving import save

if TYPE_CHECKING:
    from freezealign.model import FreezeAlign


def push(model: FreezeAlign, repo_id: str, *, token: bool | str | None, private: bool, message: str) -> str:
    """Save ``model`` to a temporary folder and upload it; return the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, explain_hub_errors(repo_id):
        save(model, Path(folder), repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(commit.commit_url)
