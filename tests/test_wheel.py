"""The wheel, installed on its own, works in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from tests.catalog import catalog
from tests.databases import PROJECT

if TYPE_CHECKING:
    from tests.databases import MakeDatabase


#: Import every module of guard, also those that are loaded only where they are needed.
IMPORT_ALL = """
import importlib, pkgutil, guard
for module in pkgutil.walk_packages(guard.__path__, "guard."):
    importlib.import_module(module.name)
print(guard.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("booking_guard-*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The command of a virtual environment that holds the wheel and what it requires, and nothing else.

    Its dependencies are this environment's, linked and not fetched: those of the metadata, and what they require.
    """
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel],
        check=True,
    )
    (site,) = environment.glob("lib/python*/site-packages")
    (own,) = site.glob("booking_guard-*.dist-info")
    linked: set[str] = set()
    for dependency in required(Distribution.at(own), ""):
        tops = {file.parts[0] for file in dependency.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops - linked:
            (site / top).symlink_to(str(dependency.locate_file(top)))
        linked |= tops
    return environment / "bin" / "guard"


def required(wanted: Distribution, extra: str) -> Iterator[Distribution]:
    """What a distribution requires, with one of its extras, directly and not."""
    for requirement in map(Requirement, wanted.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found = distribution(requirement.name)
            yield found
            for name in ("", *requirement.extras):
                yield from required(found, name)


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
    imported = subprocess.run(
        [installed.with_name("python"), "-c", IMPORT_ALL], check=False, capture_output=True, text=True, cwd=folder
    )
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.startswith(str(tmp_path / "environment"))

    dsn = make_database()
    applied = run(installed, dsn, folder, "apply")
    assert applied.returncode == 0, applied.stderr
    verified = run(installed, dsn, folder, "verify", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["ok"]) == (0, True)
    assert catalog(dsn) == catalog(database)
    reported = run(installed, dsn, folder, "report", "--format", "html")
    assert (reported.returncode, reported.stdout.startswith("<!doctype html>")) == (0, True), reported.stderr
    assert list(folder.iterdir()) == []
