"""What no commit should hold: `python .ci/check_files.py FILE...` prints what is wrong and exits with 1, or with 0."""

import json
import re
import sys
from pathlib import Path

import yaml

LARGEST = 1_000_000  # bytes; what is larger belongs to DVC
_MARKER = re.compile(r"^(<{7} |>{7} |\|{7} )", re.MULTILINE)  # of a merge that was not finished


def problems_of(path: Path) -> list[str]:
    """What is wrong with one file."""
    if path.is_symlink() or not path.is_file():
        return []
    size = path.stat().st_size
    if size > LARGEST:
        return [f"{path}: {size:,} bytes. Data and models belong to DVC, not into git."]
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return []
    if marker := _MARKER.search(text):
        line = text.count("\n", 0, marker.start()) + 1
        return [f"{path}, line {line}: a conflict marker. Finish the merge."]
    try:
        if path.suffix in (".yaml", ".yml", ".cff") or path.name == "dvc.lock":
            list(yaml.safe_load_all(text))
        if path.suffix in (".json", ".ipynb"):
            json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        return [f"{path}: not readable ({error})."]
    return []


if __name__ == "__main__":
    problems = [problem for name in sys.argv[1:] for problem in problems_of(Path(name))]
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    sys.exit(bool(problems))
