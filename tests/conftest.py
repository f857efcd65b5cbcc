"""Shared fixtures: where the real data lies, and a skip that says why when it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """The folder that holds harvard/ and templates/: $MMIF_DATA, or shared/data beside the checkout."""
    return Path(os.environ.get("MMIF_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def harvard() -> Path:
    folder = data_root() / "harvard"
    if not folder.is_dir():
        pytest.skip(
            f"real image pairs not found at {folder}; set MMIF_DATA to the folder that holds harvard/"
        )
    return folder
