"""The wheel, installed on its own, works in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.catalog import catalog
from tests.databases import PROJECT

if TYPE_CHECKING:
    from tests.databases import MakeDatabase


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("booking_guard-*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The command of a virtual environment that holds the wheel; its dependencies are this environment's."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel],
        check=True,
    )
    # a line of a .pth file adds a folder but not what that folder's own .pth files add: the checkout is not among them
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "guard"


def run(command: Path, dsn: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GUARD_", "PYTHON"))}
    return subprocess.run(
        [command, "--dsn", dsn, *arguments], check=False, capture_output=True, text=True, cwd=folder, env=kept
    )


def test_wheel_carries_what_it_applies_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("migrations", "sql"):
        for file in (PROJECT / folder).rglob("*.sql"):
            assert f"guard/assets/{file.relative_to(PROJECT)}" in names
    for file in (PROJECT / "guard" / "templates").iterdir():
        assert f"guard/templates/{file.name}" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"guard"}


@pytest.mark.slow
def test_installed_wheel_works_in_an_empty_folder(
    installed: Path, make_database: MakeDatabase, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    where: list[str | Path] = [installed.with_name("python"), "-c", "import guard; print(guard.__file__)"]
    imported = subprocess.run(where, check=True, capture_output=True, text=True, cwd=folder).stdout
    assert imported.startswith(str(tmp_path / "environment"))

    dsn = make_database()
    applied = run(installed, dsn, folder, "apply")
    assert applied.returncode == 0, applied.stderr
    verified = run(installed, dsn, folder, "verify", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["ok"]) == (0, True)
    assert catalog(dsn) == catalog(database)
    reported = run(installed, dsn, folder, "report", "--format", "html")
    assert (reported.returncode, reported.stdout.startswith("<!doctype html>")) == (0, True), reported.stderr
    assert list(folder.iterdir()) == []
