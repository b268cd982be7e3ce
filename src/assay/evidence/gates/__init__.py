"""Gates: the questions a claim must survive. Importing this package registers those it contains."""

import importlib
import pkgutil

from assay.evidence.gates.base import GATES, Contrast, Gate, evaluate, gates_for, get_gate, register

__all__ = ["GATES", "Contrast", "Gate", "evaluate", "gates_for", "get_gate", "register"]

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_module.name}")
