"""The demo's booking part does what it says: it checks each of its claims itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.databases import PROJECT, MakeDatabase

RUN = "import sys; from examples import booking; booking.run(sys.argv[1])"


@pytest.mark.slow
def test_the_booking_path_on_an_empty_database(make_database: MakeDatabase) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "GUARD_"))}
    shown = subprocess.run(
        [sys.executable, "-c", RUN, make_database()],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PROJECT,
        env=kept,
    )
    assert shown.returncode == 0, shown.stdout[-2000:] + shown.stderr
    assert "the audit counts zero for every rule" in shown.stdout
