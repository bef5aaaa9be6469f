"""Where the SQL that guard applies lives: inside the installed package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE / "assets" if (_PACKAGE / "assets").is_dir() else _PACKAGE.parent

MIGRATIONS = _ROOT / "migrations"
SQL = _ROOT / "sql"
