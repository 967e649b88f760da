from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test may write its rows."""
    return tmp_path / "data.jsonl"
