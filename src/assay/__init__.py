"""Assay: mechanistic interpretability whose findings are tested. Names load on first use."""

from importlib import import_module, metadata
from typing import Any

_HOMES = {
    "load_model": "assay.model.load",
    "Model": "assay.model.model",
    "Site": "assay.sites",
    "parse_site": "assay.sites",
    "parse_sites": "assay.sites",
    "patch": "assay.model.edits",
    "zero": "assay.model.edits",
    "add": "assay.model.edits",
    "scale": "assay.model.edits",
    "clamp": "assay.model.edits",
    "project_out": "assay.model.edits",
    "PatchPlan": "assay.circuits.patch",
    "patch_sweep": "assay.circuits.patch",
    "load_task": "assay.data.tasks",
    "prepare": "assay.data.prepare",
    "Atlas": "assay.atlas.store",
    "Settings": "assay.evidence.run",
    "Source": "assay.evidence.source",
    "Statement": "assay.evidence.run",
    "state_claim": "assay.evidence.run",
    "test_claim": "assay.evidence.run",
    "load_dictionary": "assay.features.formats",
    "train": "assay.features.train",
    "TrainPlan": "assay.features.train",
    "Spec": "assay.features.dictionary",
    "trace": "assay.circuits.trace",
    "AssayError": "assay.errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("assay")
    if name not in _HOMES:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
