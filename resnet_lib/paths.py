"""Where things lie, and how a file is written: whole or not at all."""

import hashlib
import json
import os
import tempfile
from pathlib import Path


def project_root() -> Path:
    """Where claims.yml and records/ live: the checkout, or the copy packed into an installed library."""
    package = Path(__file__).resolve().parent
    return package.parent if (package.parent / "claims.yml").is_file() else package / "published"


def cache_folder() -> Path:
    """Where decoded data and finished runs are kept: $RESNET_LIB_CACHE, else the user's cache folder."""
    if own := os.environ.get("RESNET_LIB_CACHE"):
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet_lib"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / "resnet_lib"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(value: object) -> str:
    """Sixteen hexadecimal digits that stand for a text, or for a value by its JSON."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
