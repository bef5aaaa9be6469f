"""Fixtures of more than one test file; the databases are in tests/databases.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guard import assets
from tests.databases import PROJECT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of migrations/ and sql/ that this process works with, to be edited."""
    for name in ("migrations", "sql"):
        shutil.copytree(PROJECT / name, tmp_path / name)
        monkeypatch.setattr(assets, name.upper(), tmp_path / name)
    return tmp_path
