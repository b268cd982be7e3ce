"""Imports point one way, and only model/ knows transformers."""

import ast
from pathlib import Path

ORDER = ["errors", "large_pages", "files", "records", "passport", "registry", "statistics", "sites", "permissions",
         "signing", "model", "data", "features", "probe", "circuits", "steer", "explain", "organisms", "monitor", "evidence",
         "atlas", "scale", "mapping", "vision", "report", "demo", "testing", "calibrate", "audit", "replicate", "serving",
         "app", "cli"]  # fmt: skip
ROOT = Path(__file__).parent.parent / "src" / "assay"


def test_imports_point_one_way():
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] == "transformers" and own not in ("model", "testing"):
                    wrong.append(f"{path.name} imports transformers")
                if name.startswith("assay.") and own in ORDER:
                    other = name.split(".")[1]
                    if other in ORDER and ORDER.index(other) > ORDER.index(own):
                        wrong.append(f"{path.name} imports {name}")
    assert wrong == []
