"""A second corpus: the same claim on texts of another source, where the claim's options name one.

1. The option `second_corpus` names a bundled concept, of which discover and tune are read, or a concept file in the working
   folder, which is read whole; at most `MOST` texts. That is a look at them: later claims about these texts are exploratory.
2. Nothing is fitted on it: score and thresholds are those of the claim's own tune texts. For *explains* the rule says what a
   member is there, too; for *connects* labels say nothing.
3. Its texts and templates must be others than those the claim was fitted on, and there must be enough templates to decide on.

An association that one corpus shows can be an accident of that corpus (Bolukbasi et al. 2021).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.data.prepare_concept import PreparedConcept
from assay.errors import TaskError, bad_argument
from assay.evidence.hosts import Host
from assay.evidence.source import ConceptSource, find_source, spread
from assay.records import Example, digest

OPTION = "second_corpus"
SPLITS = ("discover", "tune")
MOST = 400
FEWEST = 8  # templates with members


def second_corpus(
    host: Host, options: Mapping[str, Any], tune: PreparedConcept, seed: int,
    labels: Callable[[Sequence[Example]], Sequence[int]] | None = None,
) -> PreparedConcept | None:  # fmt: skip
    """The texts of the corpus that the options name, ready to be read; None where they name none. `labels`: what a member is
    there, instead of the texts' own labels.

    Raises UsageError for the claim's own texts, TaskError for no concept, or one with too few templates or one label only.
    """
    if OPTION not in options:
        return None
    name = str(options[OPTION])
    items = second_texts(name, seed, [item.text for item in tune.examples], tune.templates)
    if labels is not None:
        items = [replace(item, label=label) for item, label in zip(items, labels(items), strict=True)]
    data = host.load(items)
    members = {template for template, label in zip(data.templates, data.labels, strict=True) if label == 1}
    if len(members) < FEWEST or 0 not in data.labels:
        raise TaskError(f"option {OPTION}: {name} has members in {len(members)} templates and {data.labels.count(0)}"
                        f" non-members; allowed: {FEWEST} templates or more, and some non-members.")  # fmt: skip
    return data


def second_texts(name: str, seed: int, texts: Sequence[str], templates: Sequence[str]) -> list[Example]:
    """The texts of the corpus of that name. `texts`, `templates`: the claim's own; UsageError for those, and for a task."""
    source = find_source(name)
    if not isinstance(source, ConceptSource):
        raise bad_argument(f"option {OPTION}", name, "a concept (labelled texts)", f"{name} is a task (pairs of prompts).")
    items = spread(whole_of(source, seed), MOST)
    if {item.text for item in items} & set(texts) or {item.template for item in items} & set(templates):
        raise bad_argument(f"option {OPTION}", name, "other texts and templates than the claim's own")
    return items


def whole_of(source: ConceptSource, seed: int) -> list[Example]:
    """All texts of a file; of a bundled concept those that are not sealed."""
    if not source.bundled:
        return source.explore(None, MOST, seed)
    return [item for split in SPLITS for item in source.items(split, MOST // len(SPLITS), seed)]


def record_of(examples: Sequence[Example] | None) -> dict[str, Any]:
    """What the plan locks of it; nothing without one."""
    if examples is None:
        return {}
    texts = digest([[item.text, item.label] for item in examples])[:16]
    return {OPTION: {"texts": len(examples), "templates": len({item.template for item in examples}), "digest": texts}}
