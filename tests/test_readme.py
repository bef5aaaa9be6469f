"""What README.md shows is what is shown."""

from __future__ import annotations

import re
import subprocess

from tests.catalog import execute
from tests.databases import PROJECT


def test_refused_write_in_psql(adopted: str) -> None:
    (shown,) = re.findall(r"```\n(booking=> .*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    typed = re.findall(r"^booking=> (.*\n)", shown, re.MULTILINE)
    execute(
        adopted,
        "update guard.rules set mode = 'enforce' where rule = 'tenant_mismatch'",
        # the examples' database has 10,000 calls, this one 1000
        "insert into calls (id, company_id) values (9998, 18)",
        "select setval('appointments_id_seq', 4300)",
    )
    psql = ["psql", "--no-psqlrc", adopted]
    printed = subprocess.run(
        psql, check=True, input="".join(typed), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout
    assert printed == re.sub(r"^booking=> .*\n", "", shown, flags=re.MULTILINE)


def test_breaker_in_psql(adopted: str) -> None:
    (typed,) = re.findall(r"```sql\n([^`]*breaker_acquire.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    psql = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", adopted]
    printed = subprocess.run(psql, check=True, input=typed, stdout=subprocess.PIPE, text=True).stdout
    assert printed == "closed\n"
