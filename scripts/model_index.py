"""Writes profiles/models/index.json: which model a name, an alias or a repository stands for.

Run it after a change to profiles/models/*.toml; `--check` only says whether the index is as it should be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from plan_llama.models.catalog_models import INDEX, index_of
from plan_llama.models.known_models import parse

FOLDER = Path(__file__).resolve().parents[1] / "profiles" / "models"


def index_text() -> str:
    """The index of the profiles as they are."""
    index = index_of(parse(path.stem, path) for path in sorted(FOLDER.glob("*.toml")))
    return json.dumps(index, indent=0, ensure_ascii=True, sort_keys=True) + "\n"


def main() -> int:
    """0 when the index is (now) right, 1 when `--check` finds it old."""
    path, text = FOLDER / INDEX, index_text()
    if "--check" in sys.argv[1:]:
        fresh = path.is_file() and path.read_text(encoding="utf-8") == text
        sys.stdout.write(f"{path}: {'up to date' if fresh else 'out of date, run scripts/model_index.py'}\n")
        return 0 if fresh else 1
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{path}: written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
