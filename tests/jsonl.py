"""Small JSON-lines files for tests."""

from __future__ import annotations

import json
from pathlib import Path


def write(file: Path, *rows: object) -> Path:
    """One row a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
