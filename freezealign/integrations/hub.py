"""Sharing a model on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from freezealign.hub import explain_hub_errors


def push(save: Callable[[Path], None], repo_id: str, *, token: bool | str | None, private: bool, message: str) -> str:
    """Upload what ``save`` writes into a folder, and return the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder, explain_hub_errors(repo_id):
        save(Path(folder))
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(commit.commit_url)
