"""A folder sealed: size and SHA-256 of every file in its subfolders, forced to disk, in one file beside these."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from envs import UserError

SEAL = "seal.json"


def seal(folder: Path) -> None:
    """Forces what is in the subfolders to disk and writes the seal."""
    files = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    sealed = {str(path.relative_to(folder)): _to_disk(path) for path in files}
    (folder / SEAL).write_text(json.dumps({"files": sealed, "sha256": _sha256_of(sealed)}, indent=1))
    _to_disk(folder / SEAL)


def damage(folder: Path) -> str | None:
    """What of a folder is not what its seal says, or None. Raises UserError: it cannot be read."""
    try:
        seal = json.loads((folder / SEAL).read_bytes())
        if seal["sha256"] != _sha256_of(seal["files"]):
            return f"{SEAL} has another checksum"
        for name, (size, sha256) in seal["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _sha256(path) != sha256:
                return f"{name} has another checksum"
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{SEAL} cannot be read"
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return None


def _to_disk(path: Path) -> tuple[int, str]:
    """Forces a file to disk; its size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
