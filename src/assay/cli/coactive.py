"""`assay circuit coactive MODEL CORPUS`."""

from collections.abc import Sequence
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options

LABEL = "screening list, not individually confirmed; a claim is stated with: assay claim state --kind connects"
MOST_HELD = 8192  # tokens of held-out texts, of which all values are kept for a moment


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("corpus", metavar="CORPUS")
@click.option("--site", "sites", multiple=True, required=True, metavar="SITE",
              help="mlp_act.3, or latent.NAME of a dictionary; may be given again.")  # fmt: skip
@click.option("--dictionary", "dictionaries", multiple=True, metavar="PATH", help="Whose latents are counted.")
@click.option("--top", default=20, show_default=True, type=click.IntRange(1), help="Pairs shown.")
@click.option("--tokens", default=20_000, show_default=True, type=click.IntRange(1), help="Read from the corpus at most.")
@click.option("--length", default=128, show_default=True, type=click.IntRange(2), help="Texts are cut after so many tokens.")
@click.option("--quantile", default=0.95, show_default=True, help="Of its own values, above which a feature fires.")
@click.option("--threshold", default=None, type=float, help="One number for all features instead of a quantile.")
@click.option("--lag", default=0, show_default=True, help="The second may fire up to so many tokens later.")
@click.option("--skip", default=1, show_default=True, help="First tokens of every text that are left out.")
@click.option("--nulls", default=9, show_default=True, help="Shifted counts; each reads the corpus once more.")
@click.option("--check", default=0, show_default=True, type=click.IntRange(0), help="Pairs to switch off and read.")
@model_options
@common_options
def coactive(
    common: Common, name: str, corpus: str, sites: tuple[str, ...], dictionaries: tuple[str, ...], top: int, tokens: int,
    length: int, check: int, dtype: str, prepend_bos: bool | None, **options: Any,
) -> None:  # fmt: skip
    """Which features of MODEL fire together on CORPUS (packaged, or a file of one text a line), and is that a connection?

    A fifth of the texts only sets the thresholds. With --check the first feature of a pair is switched off: does the
    second fall more than others that fire as often?
    """
    from assay.atlas.store import Atlas
    from assay.circuits.coactivation import CoactivationPlan, check_pairs, checkable, coactivation
    from assay.circuits.firing import site_firing
    from assay.cli.opened import open_dictionary
    from assay.data.vectors import read_corpus
    from assay.evidence.claims import record_look
    from assay.records import Example

    quantile, threshold = options.pop("quantile"), options.pop("threshold")
    plan = CoactivationPlan(**options, seed=common.seed)
    read = read_corpus(corpus)
    for path in dictionaries:
        open_dictionary(path)
    model = common.load(name, dtype, prepend_bos)
    texts, held, counted = divided(model, read, tokens, length, common.seed)
    firing = site_firing(model, sites, held, quantile, threshold, plan.skip)
    with common.progress("counting", len(counted) * (1 + plan.nulls)) as advance:
        found = coactivation(firing, counted, plan, progress=advance)
    pairs = [(int(found.pairs.first[row]), int(found.pairs.second[row])) for row in found.listed]
    able = [pair for pair in pairs if checkable(firing, pair)]
    with common.progress("switching off", min(check, len(able))) as advance:
        checked = check_pairs(firing, counted, able[:check], plan, progress=advance)
    record_look(Atlas(common.atlas), model.digest, f"coactive {' '.join(sites)}",
                [Example(text, 0, text) for text in texts])  # fmt: skip
    bar = {"quantile": quantile} if threshold is None else {"threshold": threshold}
    record = {"label": LABEL, "corpus": corpus, "sites": list(map(str, firing.levels)), "fires_above": bar,
              "held_out": len(held), "length": length, **record_of(found, top), "checkable": len(able),
              "checked": [vars(each) for each in checked], "passport": model.passport()}  # fmt: skip
    common.emit(record, lambda: shown(record))


def divided(
    model: Any, texts: Sequence[str], tokens: int, length: int, seed: int
) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """(texts read, token ids of a fifth of them for thresholds, those of the others), drawn by seed up to the budget."""
    import numpy as np

    from assay.errors import TaskError

    read: list[str] = []
    ids: list[list[int]] = []
    unique = list(dict.fromkeys(texts))
    for place in np.random.default_rng([seed, 5]).permutation(len(unique)).tolist():
        if tokens <= 0:
            break
        ids.append(model.tokens([unique[place]])[0][: min(length, tokens)])
        read.append(unique[place])
        tokens -= len(ids[-1])
    n_held = max(1, len(ids) // 5)
    if len(ids) - n_held < 2:
        raise TaskError(f"the corpus gave {len(ids)} texts: one for thresholds and two to count are needed at least.")
    held: list[list[int]] = []
    for row in ids[:n_held]:
        if held and sum(map(len, held)) + len(row) > MOST_HELD:
            break
        held.append(row)
    return read[: len(held)] + read[n_held:], held, ids[n_held:]


def record_of(found: Any, top: int) -> dict[str, Any]:
    """The result as plain data, with the strongest listed pairs."""
    group = {unit: number for number, units in enumerate(found.communities.groups) for unit in units}
    columns = ("together", "expected", "pmi", "pmi_low", "pmi_high", "phi", "phi_low", "phi_high", "p", "q")
    rows = [{"first": found.features[int(found.pairs.first[row])], "second": found.features[int(found.pairs.second[row])],
             **{name: getattr(found.pairs, name)[row].item() for name in columns},
             "community": group.get(int(found.pairs.first[row]))} for row in found.listed[:top]]  # fmt: skip
    groups = [[found.features[unit] for unit in units] for units in found.communities.groups]
    return {"plan": vars(found.plan), "tokens": found.n_tokens, "texts": found.n_texts, "blocks": found.n_blocks,
            "features": len(found.features), "screened": found.pairs.screened, "seen_together": len(found.pairs),
            "listed": len(found.listed), "pairs": rows,
            "communities": {**vars(found.communities), "groups": groups}}  # fmt: skip


def shown(record: dict[str, Any]) -> Any:
    """The terminal's view: what was screened, the pairs, the communities, the checks."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from assay.report import story
    from assay.report.cells import visible

    def table(*names: str) -> Table:
        made = Table(box=None, pad_edge=False)
        for place, name in enumerate(names):
            made.add_column(name, justify="left" if place < 2 else "right")
        return made

    found, bar = record["communities"], " ".join(f"{name} {value:g}" for name, value in record["fires_above"].items())
    head = (f"{record['tokens']} tokens of {record['texts']} texts; {record['features']} features fire above {bar};"
            f" {record['screened']} pairs screened, {record['seen_together']} seen together,"
            f" {record['listed']} listed")  # fmt: skip
    pairs = table("first", "second", "together", "expected", "PMI", "95% interval", "phi", "95% interval", "q", "group")
    for row in record["pairs"]:
        cells = (row["first"], row["second"], str(row["together"]), f"{row['expected']:.1f}", story.number(row["pmi"]),
                 story.interval(row["pmi_low"], row["pmi_high"]), story.number(row["phi"]),
                 story.interval(row["phi_low"], row["phi_high"]), f"{row['q']:.2g}", str(row["community"]))  # fmt: skip
        pairs.add_row(*map(Text, cells))
    parts: list[Any] = [Text(head), Text(record["label"], style="dim"), pairs, Text(_communities_line(found))]
    for number, group in enumerate(found["groups"][:5]):
        parts.append(Text(visible(f"  {number}: {', '.join(group)}", 100), style="dim"))
    if record["checked"]:
        checks = table("switched off", "read", "fall", "like it", "difference", "95% interval", "texts", "")
        for row in record["checked"]:
            cells = (row["first"], row["second"], story.number(row["fall"]), story.number(row["matched"]),
                     story.number(row["difference"]), story.interval(row["low"], row["high"]), str(row["documents"]),
                     row["label"])  # fmt: skip
            checks.add_row(*map(Text, cells))
        parts.append(checks)
    return Group(*parts)


def _communities_line(found: dict[str, Any]) -> str:
    if found["modularity"] is None:
        return "no communities: no pair is listed"
    null = found["null"]
    against = f"; shifted {min(null):.3f} to {max(null):.3f}, p {found['p']:.2g}" if null else "; not compared with shifts"
    listed = f"; pairs listed after shifts: {', '.join(map(str, found['null_listed']))}" if null else ""
    return f"{len(found['groups'])} communities, modularity {found['modularity']:.3f}{against}{listed}"
