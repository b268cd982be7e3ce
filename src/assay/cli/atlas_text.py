"""Mapped features as text for a terminal. Tokens of models and files are shown, never obeyed (`report.cells.visible`)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from assay.atlas.mapped import Change, FeaturePage, Hit, MapDiff
from assay.explain.records import FIRING, Score, Window
from assay.report.cells import visible

TEXT, TOKENS, NEAR, LONG = 90, 8, 5, 200


def set_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A set in two lines."""
    counts, units = found["summary"]["features"], f"{found['unit']}s of {found['dictionary'] or found['site']}"
    yield f"{found['id']}  {units} on {found['corpus']}, {found['created'][:10]}"
    yield (f"  {counts['mapped']:,} of {counts['all']:,} mapped, {counts['active']:,} active, {counts['explained']:,} with an"
           f" explanation; claims about {counts['claimed']:,}: {counts['supported']:,} supported,"
           f" {counts['refuted']:,} refuted, {counts['inconclusive']:,} inconclusive")  # fmt: skip


def row_line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    scores = "  ".join(f"{key.removeprefix('score_')} {value:.2f}" for key, value in row.items()
                       if key.startswith("score_") and value is not None)  # fmt: skip
    said = visible(row["text"], TEXT) or f"({visible(row['why_not'], TEXT) or 'no explanation'})"
    return f"{visible(row['name'], TEXT)}  on at {row['density']:.3%}  {said}{'  ' * bool(scores)}{scores}"


def hit_line(hit: Hit) -> str:
    """A feature that was found."""
    return f"{visible(hit.feature, TEXT)}  {hit.value:.3g}  {visible(hit.text, TEXT) or '(no explanation)'}"


def page_lines(page: FeaturePage, contexts: int) -> Iterator[str]:
    """A feature: what is said of it and how far that is tested, then numbers, tokens, neighbours, and where it fires."""
    record = page.record
    yield f"{visible(record.name, TEXT)}  of {page.set.id}"
    for each in record.explanations:
        yield f"  {visible(each.text, LONG)}  ({each.explainer})"
        yield from (f"    {_score(score)}" for score in record.scores if score.explainer == each.explainer)
    if not record.explanations:
        yield f"  no explanation{': ' * bool(record.why_not)}{visible(record.why_not, LONG)}"
    for claim in page.claims:
        yield f"  claim {claim.id}: {claim.verdict}. {visible(claim.statement, LONG)}"
    if not page.claims:
        yield "  no claim is about it: nothing said above has been tested on sealed data"
    yield f"  on at {record.density:.4%} of tokens ({record.fired:,}), largest {record.largest:.4g}"
    if record.spread:
        yield "  spread over " + ", ".join(f"{value:.1f} {basis}" for basis, value in record.spread.items())
    for what, pairs, form in (("fires on", record.top_tokens, "{:.0%}"), ("promotes", record.promoted, "{:+.3g}"),
                              ("suppresses", record.suppressed, "{:+.3g}")):  # fmt: skip
        if pairs:
            yield f"  {what}: " + ", ".join(f"{visible(token)} {form.format(value)}" for token, value in pairs[:TOKENS])
    for what, nears in (("like it", page.neighbours), ("on with it", page.coactive)):
        yield from (
            f"  {what}: {visible(near.feature, TEXT)} {near.value:.2f}  {visible(near.text, TEXT)}" for near in nears[:NEAR]
        )
    for effect in page.effects:
        size = f"{effect.value:+.3g} {effect.metric}{_interval(effect.low, effect.high)}"
        yield f"  effect on {visible(effect.task, TEXT)}: {size}"
    if page.circuits:
        yield f"  in: {', '.join(visible(circuit, TEXT) for circuit in page.circuits)}"
    yield from _windows(record.contexts, contexts)


def _windows(windows: Sequence[Window], limit: int) -> Iterator[str]:
    firing = [window for window in windows if window.why in FIRING]
    silent = [window for window in windows if window.why not in FIRING]
    for name, part in (("where it fires", firing[:limit]), ("where it does not", silent[: limit // 2])):
        if part:
            yield f"  {name}:"
            yield from (f"    {window.value:8.3g}  {window_text(window)}" for window in part)
    left = len(windows) - min(len(firing), limit) - min(len(silent), limit // 2)
    if left:
        yield f"  and {left} more contexts: --contexts {len(windows) * 2}, or --json"


def window_text(window: Window) -> str:
    """A window with the tokens the feature is on at in «these»."""
    return "".join(f"«{_inline(piece)}»" if value > 0 else _inline(piece)
                   for piece, value in zip(window.pieces, window.values, strict=True))  # fmt: skip


def _inline(piece: str) -> str:
    """A piece within a line: spaces as they are, all else as `visible` shows it."""
    spaces = len(piece) - len(piece.lstrip(" "))
    return piece[:spaces] + (visible(piece[spaces:], LONG) if len(piece) > spaces else "")


def _score(score: Score) -> str:
    beside = {"chance": score.chance, "other explanations": score.shuffled, "untrained model": score.untrained}
    shown = ", ".join(f"{what} {value:.2f}" for what, value in beside.items() if value is not None)
    failed = f", {score.failed} without an answer" if score.failed else ""
    return f"{score.scorer} {score.value:.2f}{_interval(score.low, score.high)} ({shown}; {score.n} windows{failed})"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def diff_lines(found: MapDiff) -> Iterator[str]:
    """Counts, then what changed, then what is only in one."""
    counts = found.counts
    yield f"a: {found.a.id}\nb: {found.b.id}"
    yield (f"{counts['pairs']:,} pairs by {found.how}: {counts['same']:,} same, {counts['changed']:,} changed (density"
           f" {counts['density']:,}, tokens {counts['tokens']:,}, explanation {counts['explanation']:,}, verdict"
           f" {counts['verdict']:,}); only in a {counts['only_a']:,}, only in b {counts['only_b']:,}")  # fmt: skip
    for each in found.changed:
        yield from _changed(each)
    for what, names in (("a", found.only_a), ("b", found.only_b)):
        yield from (f"only in {what}: {visible(name, TEXT)}  {visible(text, TEXT)}" for name, text in names)


def _changed(each: Change) -> Iterator[str]:
    overlap = "" if each.overlap is None else f", tokens shared {each.overlap:.0%}"
    names = visible(each.a, TEXT) if each.a == each.b else f"{visible(each.a, TEXT)} -> {visible(each.b, TEXT)}"
    yield f"{names}  {', '.join(each.changes)}: on at {each.density[0]:.3%} -> {each.density[1]:.3%}{overlap}"
    if "explanation" in each.changes:
        yield f"    {visible(each.text[0], TEXT) or '(none)'}  ->  {visible(each.text[1], TEXT) or '(none)'}"
    if "verdict" in each.changes:
        yield f"    {', '.join(each.verdicts[0]) or 'no claim'}  ->  {', '.join(each.verdicts[1]) or 'no claim'}"
