"""Explainers: what is said of a feature, from windows that are never scored and from what it does to the next token.

    lexical     rules found by description length (`assay.explain.lexical`); no endpoint
    top         a language model sees the strongest windows, firing tokens marked
    contrast    the same, beside like windows where the feature is off
    output      it sees only which next tokens become likelier and less likely (`assay.explain.output_side`)
    both        windows, like windows and next tokens

1. An explainer sees `Sample.shown` only; a sample whose shown and scored windows share a document is refused.
2. Replies that are missing, refused or not as asked for give an explanation without text: it is scored as wrong, not dropped.
3. `Explanation.explainer` names explainer and version (`openai:MODEL/top/1`).

A further explainer is one registration in `EXPLAINERS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.errors import bad_argument
from assay.explain import prompts
from assay.explain.prompts import Prompt
from assay.explain.records import FIRING, Explanation, Sample, Window
from assay.explain.tools import Tools, check_disjoint
from assay.registry import Registry

MOST_ON, MOST_OFF = 20, 10  # windows of a prompt
BLOCK = 32  # features asked about together


@dataclass(frozen=True)
class Explainer:
    """`asks`: it needs an endpoint; `needs`: what else of `Tools` (reading, outputs). `explain`: one per sample, in order."""

    name: str
    words: str
    explain: Callable[[Iterable[Sample], Tools], Iterator[Explanation]]
    asks: bool = True
    needs: tuple[str, ...] = ()


EXPLAINERS: Registry[Explainer] = Registry("explainer")


def explain(samples: Iterable[Sample], explainer: str, tools: Tools) -> Iterator[Explanation]:
    """Explanations by one explainer, in the order of the samples (a stream will do).

    Raises UsageError for an unknown explainer, a missing endpoint, output or reading, or a sample that shares documents;
    BudgetSpent and EndpointError after everything that was answered is kept.
    """
    chosen = EXPLAINERS.get(explainer)
    if chosen.asks:
        tools.endpoint(explainer)
    for need in chosen.needs:
        if not getattr(tools, need):
            raise bad_argument("explainer", explainer, f"one that needs no {need}", f"Give {need}.")
    yield from chosen.explain(samples, tools)


# asking -------------------------------------------------------------------------------------------


def _asking(name: str, ask: Callable[[Sample, Tools], Prompt]) -> Callable[[Iterable[Sample], Tools], Iterator[Explanation]]:
    """An explainer that sends one prompt per sample, a block at a time."""

    def run(samples: Iterable[Sample], tools: Tools) -> Iterator[Explanation]:
        for block in _blocks(samples):
            yield from _asked(name, block, [ask(sample, tools) for sample in block], tools)

    return run


def _asked(name: str, block: Sequence[Sample], asked: Sequence[Prompt], tools: Tools) -> Iterator[Explanation]:
    asker = tools.endpoint(name)
    for sample, reply in zip(block, asker.ask(asked), strict=True):
        text = prompts.explanation_in(reply.text) or ""
        yield Explanation(sample.feature, text, f"{asker.name}/{prompts.versioned(name)}", output=_output(name, sample, tools),
                          cost=reply.cost)  # fmt: skip
        tools.done()


def _blocks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    block: list[Sample] = []
    for sample in samples:
        check_disjoint(sample)
        block.append(sample)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _output(name: str, sample: Sample, tools: Tools) -> Mapping[str, Any] | None:
    """What an explainer saw of the next token."""
    if name not in ("output", "both"):
        return None
    clamped = tools.clamped.get(sample.feature)
    return tools.outputs[sample.feature].json() | ({} if clamped is None else {"clamped": clamped.json()})


def strongest(sample: Sample) -> list[Window]:
    """Windows that fire, strongest first, from all kinds."""
    return sorted((window for window in sample.shown if window.why in FIRING), key=lambda window: -window.value)


def _on(sample: Sample) -> list[Window]:
    """Top windows first, then a spread over the rest."""
    on = strongest(sample)
    first, rest = on[: MOST_ON // 2], on[MOST_ON // 2 :]
    room = MOST_ON - len(first)
    return first + (rest if len(rest) <= room else [rest[place * len(rest) // room] for place in range(room)])


def _off(sample: Sample) -> list[Window]:
    """Windows that do not fire, kinds in turn."""
    kinds: dict[str, list[Window]] = {}
    for window in sample.shown:
        if window.why not in FIRING:
            kinds.setdefault(window.why, []).append(window)
    turns = max((len(kind) for kind in kinds.values()), default=0)
    return [kind[turn] for turn in range(turns) for kind in kinds.values() if turn < len(kind)][:MOST_OFF]


def _tokens(sample: Sample, tools: Tools) -> list[prompts.Lists]:
    """Promoted and suppressed tokens: to first order, and where it was clamped also then. Raises UsageError where they were not
    read."""
    found = tools.outputs.get(sample.feature)
    if found is None:
        raise bad_argument("outputs", f"nothing of {sample.feature}", "what every feature does to the next token",
                           "Read it with assay.explain.output_side.")  # fmt: skip
    known = [found, *(each for each in (tools.clamped.get(sample.feature),) if each is not None)]
    return [([token.text for token in each.promoted], [token.text for token in each.suppressed]) for each in known]


def _top(sample: Sample, tools: Tools) -> Prompt:
    return prompts.top(strongest(sample)[:MOST_ON], sample.largest)


def _contrast(sample: Sample, tools: Tools) -> Prompt:
    return prompts.contrast(_on(sample), _off(sample), sample.largest)


def _next(sample: Sample, tools: Tools) -> Prompt:
    return prompts.output(_tokens(sample, tools))


def _both(sample: Sample, tools: Tools) -> Prompt:
    return prompts.both(_on(sample), _off(sample), _tokens(sample, tools), sample.largest)


# rules --------------------------------------------------------------------------------------------


def _lexical(samples: Iterable[Sample], tools: Tools) -> Iterator[Explanation]:
    """Rules for all features at once, handed on in the order of the samples; a feature without one is said to have none."""
    from assay.explain.lexical import explain_lexical

    wanted = list(samples)
    for sample in wanted:
        check_disjoint(sample)
    names = [sample.feature for sample in wanted]
    found = {each.feature: each for each in explain_lexical(tools.reading, names, tools.plan, tools.report)}
    for name in names:
        yield found.get(name) or Explanation(name, "", "lexical/1")


for _made in (
    Explainer("lexical", "rules a machine can apply, found by description length", _lexical, False, ("reading",)),
    Explainer("top", "a language model sees where it fires most", _asking("top", _top)),
    Explainer("contrast", "the same, beside like texts where it is off", _asking("contrast", _contrast)),
    Explainer("output", "a language model sees what it does to the next token", _asking("output", _next), True, ("outputs",)),
    Explainer("both", "a language model sees both sides", _asking("both", _both), True, ("outputs",)),
):
    EXPLAINERS.add(_made.name, _made)
