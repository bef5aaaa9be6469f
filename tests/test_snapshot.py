"""The schema that guard makes is committed, so that what a change does to it is reviewed as a diff.

`make snapshot` writes it anew.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest

SNAPSHOT = Path(__file__).with_name("schema.snapshot")

#: The server whose pg_dump writes the snapshot; others print the same schema otherwise.
MAJOR = 15


def test_schema_is_the_committed_one(database: str) -> None:
    with psycopg.connect(database) as connection:
        if connection.info.server_version // 10000 != MAJOR:
            pytest.skip(f"the snapshot is of PostgreSQL {MAJOR}")
    dump = subprocess.run(
        ["pg_dump", "--schema-only", "--no-owner", "--exclude-table=guard.*yoyo*", database],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    schema = _stable(dump)
    if os.environ.get("GUARD_SNAPSHOT") == "write":
        SNAPSHOT.write_text(schema, encoding="utf-8")
    assert schema == SNAPSHOT.read_text(encoding="utf-8"), "run `make snapshot` and review the diff"


def _stable(dump: str) -> str:
    """The dump without what differs from one day or one minor version to the next."""
    months = re.compile(r"data_consistency_alerts_\d{4}_")
    blocks = [
        block
        for block in dump.split("\n--\n")
        if not months.search(block) and not re.match(r"\s*-- (PostgreSQL database dump|Dumped)", block)
    ]
    text = "\n--\n".join(blocks)
    text = re.sub(r"^(-- Dumped .*|\\(un)?restrict .*)\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
