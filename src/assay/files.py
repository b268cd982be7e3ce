"""Writing files: either the whole new file or the old one, never half of one."""

import os
import tempfile
from pathlib import Path

from assay.errors import StoreError


def write_file(path: Path, content: bytes) -> None:
    """Write beside, then rename; folders are made. Raises StoreError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}). Choose another place.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's own mode would hide the file from everybody else
        os.replace(name, path)
    except OSError as error:
        os.unlink(name)
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}). Choose another place.") from error
    except BaseException:
        os.unlink(name)
        raise
