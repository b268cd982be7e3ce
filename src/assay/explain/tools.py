"""What explainers and scorers work with besides the samples: an endpoint, an encoder, what features do to the next token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from assay.errors import bad_argument
from assay.explain.prompts import Prompt
from assay.explain.records import Cost, Sample

Report = Callable[[int], Any]


@dataclass(frozen=True)
class Reply:
    """Of one prompt. `text`: None where there is no usable one, and then `failed` says why. `cached`: nothing was paid now.
    `cost`: what it cost, in this run or an earlier one; 0 where the same run has had it before."""

    text: str | None
    cost: Cost = field(default_factory=Cost)
    cached: bool = False
    failed: str = ""


@runtime_checkable
class Ask(Protocol):
    """Something that answers prompts: an endpoint with its journal (`assay.explain.endpoint.Asker`), or a dry run."""

    @property
    def name(self) -> str:
        """How explanations call it: `openai:MODEL`."""
        ...

    @property
    def unanswered(self) -> Mapping[str, str]:
        """Prompts of this run that have no answer yet, and why: what was made without them must not be kept."""
        ...

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Replies in order. Raises BudgetSpent or EndpointError; whatever was answered before is kept."""
        ...


@dataclass(eq=False)
class Tools:
    """`asker`: an endpoint, None for none. `encoder`: name of the sentence encoder. `reading`, `plan`: what the lexical
    explainer reads, and how. `executed`: applies rules to windows fast (`assay.explain.executed`); None: they are read from
    their text.

    `outputs`: what is known of what features do to the next token (`assay.explain.output_side`), by feature; `clamped`: the
    same, measured in contexts of shown documents; `changes`: and of scored ones. `seed`: of every choice. `report` is called
    with features done. `memo`: verdicts of the block at work.
    """

    asker: Ask | None = None
    encoder: str = "minilm"
    outputs: Mapping[str, Any] = field(default_factory=dict)
    clamped: Mapping[str, Any] = field(default_factory=dict)
    changes: Any = None
    reading: Any = None
    executed: Any = None
    plan: Any = None
    seed: int = 0
    report: Report | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def endpoint(self, what: str) -> Ask:
        """The endpoint. Raises UsageError where there is none."""
        if self.asker is None:
            raise bad_argument("explainer", what, "lexical, or an endpoint for this one",
                               "Give --explainer openai:MODEL@URL.")  # fmt: skip
        return self.asker

    @cached_property
    def encode(self) -> Any:
        """The sentence encoder, fetched on first use. Raises ModelError where it cannot be had."""
        from assay.features.sentences import encoder_of

        return encoder_of(self.encoder)

    def done(self, n: int = 1) -> None:
        """Say that so many features are done."""
        if self.report:
            self.report(n)


def check_disjoint(sample: Sample) -> None:
    """Raises UsageError where what was shown and what is scored share a document."""
    shared = {window.document for window in sample.shown} & {window.document for window in sample.scored}
    if shared:
        raise bad_argument("sample", f"{sample.feature} with {len(shared)} documents shown and scored, e.g. {min(shared)!r}",
                           "samples whose shown and scored windows share no document", "Sample again.")  # fmt: skip
