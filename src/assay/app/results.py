"""Results of verbs, kept in the atlas: what a page shows again and what a link leads to.

1. A result is two files in `results/`: `ID.json` (record and blocks) and, written after it, `ID.head.json` (verb, arguments,
   title, model, time). Without a head there is no result.
2. ID is a hash of the verb, the model's digest and the arguments: the same call made again replaces its own result.
3. A result is a measurement that somebody looked at. It is no evidence: claims keep theirs in the ledger.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.app.disclosed import marked, told
from assay.app.documents import clean
from assay.errors import StoreError, missing
from assay.files import write_file
from assay.records import digest

FOLDER = "results"
LARGEST = 64 << 20  # bytes of a file that is read
IDS = re.compile(r"[a-z_]+-[0-9a-f]{12}")
Result = dict[str, Any]


def keep_result(
    atlas: Path, verb: str, arguments: Mapping[str, Any], model: str, title: str, result: Mapping[str, Any]
) -> Result:
    """Write a result (`record` and `blocks`) and return it with its head. `model`: digest of the model it was measured on.

    The head of what an edited or changed model gave has a `disclosure`.
    """
    from assay.app.verbs import verbs

    changes = verbs().get(verb).changes if verb in verbs() else ""
    name = f"{verb}-{digest([verb, model, dict(arguments)])[:12]}"
    head = {"id": name, "verb": verb, "arguments": dict(arguments), "model": model, "title": title,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            **told(changes, by=verb)}  # fmt: skip
    folder = atlas / FOLDER
    body = clean({"record": result["record"], "blocks": marked(result["blocks"], verb)})
    write_file(folder / f"{name}.json", json.dumps(body, allow_nan=False).encode())
    write_file(folder / f"{name}.head.json", json.dumps(clean(head), allow_nan=False).encode())
    return {**body, "head": head}


def results(atlas: Path, *verbs: str, **arguments: Any) -> list[Result]:
    """Heads of the kept results of these verbs (none given: of all), newest first; `arguments`: only those called so."""
    found = []
    for path in sorted((atlas / FOLDER).glob("*.head.json")):
        head = _read(path)
        given = head.get("arguments", {})
        if (not verbs or head.get("verb") in verbs) and all(given.get(key) == value for key, value in arguments.items()):
            found.append(head)
    return sorted(found, key=lambda head: str(head.get("made", "")), reverse=True)


def kept_result(atlas: Path, name: str) -> Result:
    """A kept result: `head`, `record` and `blocks`. Raises UsageError where there is none, StoreError for a damaged one."""
    path = atlas / FOLDER / f"{name}.json"
    if not IDS.fullmatch(name) or not path.is_file() or not (atlas / FOLDER / f"{name}.head.json").is_file():
        newest = ", ".join(head["id"] for head in results(atlas)[:4]) or "none is kept yet"
        raise missing("result", name, f"a result of this atlas, such as {newest}")
    return {**_read(path), "head": _read(atlas / FOLDER / f"{name}.head.json")}


def _read(path: Path) -> Result:
    try:
        if path.stat().st_size > LARGEST:
            raise StoreError(f"{path}: larger than {LARGEST >> 20} MB; allowed: less.")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: cannot be read ({error}). Delete it and run the verb again.") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path}: not a kept result. Delete it and run the verb again.")
    return found
