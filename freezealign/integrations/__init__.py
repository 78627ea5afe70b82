"""Adapters to other libraries, each imported only where it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_benchmark(module: str, package: str) -> Any:
    """Return a module of a public benchmark.

    Raises:
        ModuleNotFoundError: If the benchmark or what it needs is not installed; the message gives the pip command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{package} needs {error.name}; run: pip install 'freezealign[eval]'") from None
