"""A gateway in another language needs nothing but SQL: PHP drives validation, the breaker and a refusal through PDO."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.databases import RunGuard


def test_php(database: str, guard: RunGuard) -> None:
    if shutil.which("php") is None:
        pytest.skip("php is not installed")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("insert into companies (id, name) values (1, 'A'), (2, 'B')")
        connection.execute("insert into calls (id, company_id, direction) values (1, 1, 'inbound'), (2, 1, 'inbound')")
        connection.execute("insert into appointments (company_id, call_id, calcom_v2_booking_id) values (1, 1, 'bk_1')")
    assert guard(database, "rules", "set", "tenant_mismatch", "--mode", "enforce").returncode == 0
    address = conninfo_to_dict(database)
    pdo = f"pgsql:host={address['host']};port={address['port']};dbname={address['dbname']}"
    script = Path(__file__).with_name("any_language.php")
    answer = subprocess.run(
        ["php", str(script), pdo, str(address["user"])], check=True, capture_output=True, text=True, timeout=60
    )
    result = json.loads(answer.stdout)
    assert result["validation"] == {"success": True, "reason": None}
    assert result["missing"] == {"success": False, "reason": "appointment_not_found"}
    assert (result["failures"], result["recorded"], result["state"]) == (3, "open", "open")
    assert 0 < result["retry_after"] <= 30
    assert result["refused"] == "ZG109"
