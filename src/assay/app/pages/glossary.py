"""Glossary: what the words on all pages mean."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.blocks import terms
from assay.app.documents import Made, page
from assay.app.terms import TERMS

if TYPE_CHECKING:
    from assay.app.workspace import Workspace


@page("glossary", "Glossary", "What the words on these pages mean: feature, circuit, claim and others.", group="Help")
def glossary(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """All words, by what they are about."""
    return Made([terms(f"terms-{number}", [{"word": word, "meaning": meaning} for word, meaning in group.items()], title=title)
                 for number, (title, group) in enumerate(TERMS.items(), 1)])  # fmt: skip
