"""A page as one file: for mail, for print, for a notebook. It needs no server and asks nobody for anything.

1. Where the front end is built, the file is `static/export.html` (the same bundle, inside the page, under a policy that names
   the bundle's hash and allows no request), with the document as JSON in an element that is never run.
2. The numbers are also there as plain HTML (`plain.py`), for browsers without scripts. A checkout whose front end is not built
   exports that alone.
3. In JSON, `<`, `>` and `&` are written as escapes, so that no text of a model can end the element.
"""

import html
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.app.blocks import DocumentRecord
from assay.app.documents import make_document
from assay.app.plain import STYLE, body_html
from assay.app.terms import meanings
from assay.app.workspace import Workspace
from assay.files import write_file

SHELL = Path(__file__).parent / "static" / "export.html"
PLACE = '"__ASSAY_DOCUMENT__"'
NO_SCRIPT = re.compile(r"<noscript>.*?</noscript>", re.DOTALL)
PLAIN = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def render(document: DocumentRecord) -> str:
    """A document as a self-contained HTML page."""
    title = html.escape(f"{document['title']} – Assay")
    body = body_html(document)
    shell = _shell()
    if not shell:
        return PLAIN.format(title=title, style=STYLE, body=body)
    inside = safe_json({"document": document, "terms": meanings()})
    before, _, after = shell.partition(PLACE)
    before = before.replace("<title>Assay</title>", f"<title>{title}</title>", 1)
    before = NO_SCRIPT.sub(lambda _: f"<noscript>{body}</noscript>", before, count=1)
    return before + inside + after


def safe_json(value: Any) -> str:
    """JSON that cannot end the element it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@dataclass(frozen=True)
class Shown:
    """A page in a notebook. `document`: the whole of it; `height`: of its frame, in pixels."""

    document: DocumentRecord
    height: int = 720

    def _repr_html_(self) -> str:
        page = html.escape(render(self.document))
        return (f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" width="100%" height="{self.height}"'
                ' style="border:0" title="Assay"></iframe>')  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file. Raises StoreError when it cannot be written."""
        write_file(Path(path), render(self.document).encode())
        return Path(path)


def shown(page: str, atlas: str | Path, **params: Any) -> Shown:
    """A page of an atlas as an object that shows itself."""
    return Shown(make_document(Workspace(atlas, actor="notebook"), page, params))


def _shell() -> str:
    return _read(SHELL, SHELL.stat().st_mtime_ns) if SHELL.is_file() else ""


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> str:
    text = path.read_text(encoding="utf-8")
    return text if PLACE in text else ""
