"""This machine's settings of pip for a build elsewhere: `pip_settings.py FOLDER` (used by .ci/image).

Writes FOLDER/pip.conf and, where the machine has certificates, FOLDER/ca, which pip.conf names as the build's secret.
Folders with packages that the settings name get a place below /mnt: an empty mount point FOLDER/mnt/N, and a line
`--volume=folder:/mnt/N:ro` on the output.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

# What says where packages come from; a cache, a log or a target of this machine means nothing in a build.
SOURCES = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout", "retries")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def main(folder: Path) -> None:
    """Write the settings and print the volumes."""
    settings = effective_settings()
    lines = ["[global]"]
    for certificates in (settings.get("cert"), os.environ.get("SSL_CERT_FILE"), CERTIFICATES):
        if certificates and Path(certificates).is_file():
            shutil.copy(certificates, folder / "ca")
            lines.append("cert = /run/secrets/ca")
            break
    places: list[Path] = []
    for name in SOURCES:
        if words := settings.get(name, "").split():
            lines.append(f"{name} = " + "\n    ".join(_placed(word, name, places) for word in words))
    (folder / "pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, place in enumerate(places):
        (folder / "mnt" / str(number)).mkdir(parents=True)
        print(f"--volume={place}:/mnt/{number}:ro")


def effective_settings() -> dict[str, str]:
    """What `pip install` would use: its own section over the global one, the environment over both."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in found:
            found[section][name.removeprefix("default-")] = str(ast.literal_eval(value))
    return {name: value for section in found.values() for name, value in section.items()}


def _placed(word: str, name: str, places: list[Path]) -> str:
    path = Path(word.removeprefix("file://"))
    if not path.is_absolute() or not path.is_dir():
        return word
    place = path if name == "find-links" else path.parent  # the pages of an index link to files beside it
    if place not in places:
        places.append(place)
    return f"file://{Path('/mnt', str(places.index(place)), path.relative_to(place))}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
