"""`assay monitor`: a score for every token, and thresholds that hold their false-alarm rate."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay.cli.common import Common, check_place, common_options, model_options
from assay.cli.monitor_claim import claim
from assay.cli.monitor_serve import serve

if TYPE_CHECKING:
    from assay.model.model import Model
    from assay.monitor.talks import Talk

POOLINGS = ("mean", "max", "softmax", "last", "segment", "attention")
UNITS = ("token", "segment", "reply", "conversation")
DICTIONARY = click.option("--dictionary", "dictionaries", multiple=True, metavar="PATH",
                          help="Of latent.NAME; may be given again. Default: where it was last seen.")  # fmt: skip
SLICES = 12  # that are shown
BUNDLED = {"fit": "discover", "tune": "tune", "benign": "confirm", "eval": "ood"}


@click.group()
def monitor() -> None:
    """Watch what goes on inside a model while it reads and writes, with a false-alarm rate that was measured."""


@monitor.command()
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--watches", metavar="WORDS", help="What is watched for, in words. Default: DATA.")
@click.option("--site", "sites", multiple=True, metavar="SITE", help="May be given again. Default: all resid_post."
              " latent.NAME: the latents of a --dictionary.")  # fmt: skip
@click.option("--ensemble", default=3, show_default=True, type=click.IntRange(1), help="Sites that are read together.")
@click.option("--pooling", type=click.Choice(POOLINGS), help="Default: the best on held-out groups.")
@click.option("--width", default=4, show_default=True, type=click.IntRange(1), help="Tokens of a segment.")
@click.option("--n", default=120, show_default=True, type=click.IntRange(8), help="Texts of a bundled concept.")
@click.option("--benign", metavar="DATA", help="Calibrate at once on these; none: a monitor without thresholds.")
@click.option("--rate", "target", default=0.01, show_default=True, type=float, help="False alarms per unit, at most.")
@click.option("--unit", "units", multiple=True, type=click.Choice(UNITS), help="Default: reply and conversation.")
@click.option("--days", default=90, show_default=True, type=click.IntRange(1, 36_500), help="Until it expires.")
@click.option("--out", required=True, metavar="FILE", help="Where it is written: a .safetensors file.")
@DICTIONARY
@model_options
@common_options
def fit(
    common: Common, name: str, data: str, watches: str | None, sites: tuple[str, ...], ensemble: int, pooling: str | None,
    width: int, n: int, benign: str | None, target: float, units: tuple[str, ...], days: int, out: str,
    dictionaries: tuple[str, ...], dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Fit a monitor of MODEL on DATA: a JSONL file of labelled texts or conversations, or a bundled concept."""
    from assay.cli.opened import open_dictionary
    from assay.monitor.calibrate import calibrate as set_thresholds
    from assay.monitor.files import save_monitor
    from assay.monitor.fit import FitPlan
    from assay.monitor.fit import fit as fit_monitor
    from assay.monitor.thresholds import enough

    _check_out(out)
    for path in dictionaries:
        open_dictionary(path)
    model = common.load(name, dtype, prepend_bos)
    talks = _talks(model, data, "fit", n, common, labelled=True)
    safe = _benign(common, _talks(model, benign, "benign", n, common))
    if benign:
        enough("reply", len(safe), target)
    plan = FitPlan(sites or None, ensemble, pooling, width, days=days, seed=common.seed)
    with common.progress("fit") as advance:
        made = fit_monitor(model, talks, Path(out).stem, watches or Path(data).stem, plan, advance)
    if benign:
        tune = _talks(model, data, "tune", n, common, labelled=True) if _bundled(data) else []
        with common.progress("calibrate", len(safe)) as advance:
            made = set_thresholds(made, model, safe, target, units or ("reply", "conversation"), tune, common.seed, advance)
    save_monitor(made, out)
    common.emit({"out": out, **_record(made, model)}, lambda: f"{out}\n{_shown(_record(made, model))}")


@monitor.command()
@click.argument("file", metavar="MONITOR")
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--rate", "target", default=0.01, show_default=True, type=float, help="False alarms per unit, at most.")
@click.option("--unit", "units", multiple=True, type=click.Choice(UNITS), help="Default: reply and conversation.")
@click.option("--n", default=400, show_default=True, type=click.IntRange(8), help="Texts of a bundled concept.")
@click.option("--labelled", metavar="DATA", help="Labelled data: scores become probabilities.")
@click.option("--out", metavar="FILE", help="Default: MONITOR itself.")
@DICTIONARY
@model_options
@common_options
def calibrate(
    common: Common, file: str, name: str, data: str, target: float, units: tuple[str, ...], n: int, labelled: str | None,
    out: str | None, dictionaries: tuple[str, ...], dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Set the thresholds of MONITOR on benign DATA, for the units that alert. Refuses a rate that DATA cannot promise."""
    from assay.monitor.calibrate import calibrate as set_thresholds
    from assay.monitor.files import save_monitor

    _check_out(out or file)
    model, made = _opened(common, name, file, dictionaries, dtype, prepend_bos)
    safe = _benign(common, _talks(model, data, "benign", n, common))
    known = _talks(model, labelled, "tune", n, common, labelled=True) if labelled else []
    with common.progress("calibrate", len(safe)) as advance:
        made = set_thresholds(made, model, safe, target, units or ("reply", "conversation"), known, common.seed, advance)
    save_monitor(made, out or file)
    common.emit({"out": out or file, **_record(made, model)}, lambda: f"{out or file}\n{_shown(_record(made, model))}")


@monitor.command("eval")
@click.argument("file", metavar="MONITOR")
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--train", metavar="DATA", help="What it was fitted on, to fit words on, too. Default: other groups of DATA.")
@click.option("--encoder", default="minilm", show_default=True, type=click.Choice(("minilm", "none")),
              help="Of the baseline of sentences; fetched on first use.")  # fmt: skip
@click.option("--n", default=200, show_default=True, type=click.IntRange(8), help="Texts of a bundled concept.")
@DICTIONARY
@model_options
@common_options
def evaluate(
    common: Common, file: str, name: str, data: str, train: str | None, encoder: str, n: int,
    dictionaries: tuple[str, ...], dtype: str, prepend_bos: bool | None
) -> None:  # fmt: skip
    """Measure MONITOR on labelled DATA that nothing was chosen on, beside words, random directions and the model asked."""
    from assay.monitor.evaluate import evaluate as measure

    model, made = _opened(common, name, file, dictionaries, dtype, prepend_bos)
    talks = _talks(model, data, "eval", n, common, labelled=True)
    known = _talks(model, train or (data if _bundled(data) else None), "fit", 120, common, labelled=True)
    with common.progress("measure", len(talks)) as advance:
        found = measure(made, model, talks, known, common.seed, advance, encoder)
    common.emit(asdict(found), lambda: _measured(found, bool(made.card.get("odds_texts"))))


@monitor.command()
@click.argument("file", metavar="MONITOR")
@click.argument("name", metavar="MODEL")
@click.option("--prompt", "prompts", multiple=True, required=True, help="What is asked; may be given again.")
@click.option("--chat/--plain", default=None, help="Write prompts with the chat template. Default: where there is one.")
@click.option("--tokens", default=48, show_default=True, type=click.IntRange(1), help="Of each reply, at most.")
@DICTIONARY
@model_options
@common_options
def watch(
    common: Common, file: str, name: str, prompts: tuple[str, ...], chat: bool | None, tokens: int,
    dictionaries: tuple[str, ...], dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Let MODEL reply under MONITOR: every token's score, from the pass that writes it."""
    from assay.monitor.watch import watch as look

    model, made = _opened(common, name, file, dictionaries, dtype, prepend_bos)
    found = look(model, made, prompts, tokens, chat)
    common.emit([one.to_json() for one in found], lambda: _watched(made.state(model), found))


@monitor.command()
@click.argument("file", metavar="MONITOR")
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--n", default=80, show_default=True, type=click.IntRange(8), help="Texts of a bundled concept.")
@click.option("--search", "searched", default=0, show_default=True, type=click.IntRange(0), help="Texts to seek a suffix for.")
@click.option("--paraphraser", metavar="MODEL@URL", help="Also reworded by this model at an OpenAI-compatible address; texts go"
              " there. Key: ASSAY_READER_KEY.")  # fmt: skip
@click.option("--tuned", multiple=True, metavar="ORGANISM", help="Also with this organism's fine-tuning; may be given again.")
@DICTIONARY
@model_options
@common_options
def selftest(
    common: Common, file: str, name: str, data: str, n: int, searched: int, paraphraser: str | None, tuned: tuple[str, ...],
    dictionaries: tuple[str, ...], dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """How easily is MONITOR evaded? Texts of DATA that it finds are rewritten; the rates go on its card."""
    from assay.monitor.files import save_monitor
    from assay.monitor.selftest import selftest as attack
    from assay.monitor.selftest import with_evasion
    from assay.organisms.make import find, make

    changes = [find(organism) for organism in tuned]
    reword = None if paraphraser is None else _reword(paraphraser)
    model, made = _opened(common, name, file, dictionaries, dtype, prepend_bos)
    talks = _talks(model, data, "eval", n, common, labelled=True)
    with common.progress("attack") as advance:
        worn = [make(change, model, report=advance) for change in changes]
        found = attack(made, model, talks, searched, common.seed, advance, worn, reword)
    save_monitor(with_evasion(made, found), file)
    common.emit([asdict(one) for one in found], lambda: "\n".join(
        f"{one.attack:<24} evades {one.rate.hits} of {one.rate.n} ({one.rate.low:.0%} to {one.rate.high:.0%})"
        + (f"; {one.benign.hits} of {one.benign.n} benign ones alert" if one.benign else "") for one in found
    ))  # fmt: skip


@monitor.command()
@click.argument("file", metavar="MONITOR")
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--out", metavar="FILE", help="Where a disarmed monitor is written. Default: MONITOR itself.")
@DICTIONARY
@model_options
@common_options
def drift(
    common: Common, file: str, name: str, data: str, out: str | None, dictionaries: tuple[str, ...], dtype: str,
    prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Has what MONITOR sees changed since it was calibrated? DATA: a file of benign texts or conversations of now.

    Scores and mean activations are compared with those of calibration. Where they drifted, MONITOR is written as
    uncalibrated, with the reason: it raises no alert until it is calibrated again.
    """
    from assay.errors import bad_argument
    from assay.monitor.drift import disarmed, window
    from assay.monitor.files import save_monitor
    from assay.monitor.talks import read_talks

    if _bundled(data):  # its benign texts are sealed, and those that calibrate sets thresholds on
        raise bad_argument("DATA", data, "a JSONL file of benign texts or conversations of now",
                           "A bundled concept is the same at all times: comparing it with itself shows no drift.")  # fmt: skip
    model, made = _opened(common, name, file, dictionaries, dtype, prepend_bos)
    talks = _benign(common, read_talks(model, data))
    with common.progress("drift", len(talks)) as advance:
        found = window(made, model, talks, advance)
    after = disarmed(made, found)
    if found.found:
        save_monitor(after, out or file)
    record = {**asdict(found), "drifted": found.found, "state": after.state(model)}
    common.emit(record, lambda: _drifted(record))


@monitor.command()
@click.argument("file", metavar="MONITOR")
@click.option("--model", "name", metavar="MODEL", help="Also say whether it is calibrated for this one.")
@model_options
@common_options
def show(common: Common, file: str, name: str | None, dtype: str, prepend_bos: bool | None) -> None:
    """The card of MONITOR."""
    from assay.monitor.files import load_monitor

    model = common.load(name, dtype, prepend_bos) if name else None
    made = load_monitor(file, model)
    common.emit(_record(made, model), lambda: _shown(_record(made, model)))


# what is given -----------------------------------------------------------------------------------


def _opened(
    common: Common, name: str, file: str, dictionaries: tuple[str, ...], dtype: str, prepend_bos: bool | None
) -> tuple["Model", Any]:
    from assay.cli.opened import open_monitor

    model = common.load(name, dtype, prepend_bos)
    return model, open_monitor(file, model, dictionaries)


def _reword(named: str) -> Any:
    """Rewordings by MODEL@URL. Raises UsageError for what is no such address."""
    import os

    from assay.errors import UsageError, bad_argument
    from assay.evidence.endpoint import Endpoint
    from assay.monitor.paraphrase import reworded_by

    name, at, url = named.partition("@")
    if not (name and at and url.startswith(("http://", "https://"))):
        raise bad_argument("--paraphraser", named, "MODEL@URL, e.g. some-model@http://127.0.0.1:8000/v1")
    endpoint = Endpoint(url, name, os.environ.get("ASSAY_READER_KEY", ""))

    def ask(prompt: str) -> str:
        try:
            return endpoint.ask(prompt)
        except ConnectionError as problem:
            raise UsageError(f"--paraphraser: no answer from {problem}. Check the address, or leave it out.") from problem

    return reworded_by(ask)


def _bundled(data: str | None) -> bool:
    return data is not None and not Path(data).suffix and not Path(data).is_file()


def _talks(
    model: "Model", data: str | None, use: str, n: int, common: Common, labelled: bool = False
) -> "list[Talk]":  # fmt: skip
    """A file of texts or conversations, or a split of a bundled concept: fit, tune, benign and eval are apart.

    What is read of a bundled concept is in the ledger as a look: claims stated on it afterwards are exploratory.
    """
    from assay.atlas.store import Atlas
    from assay.data.concepts import load_concept
    from assay.evidence.claims import record_look
    from assay.monitor.talks import read_talks, talks_of

    if data is None:
        return []
    if not _bundled(data):
        return read_talks(model, data, labelled)
    examples = load_concept(data, BUNDLED[use], n, common.seed)
    record_look(Atlas(common.atlas), model.digest, f"monitor {use} {data}, {BUNDLED[use]}", examples)
    return talks_of(model, examples)


def _benign(common: Common, talks: "list[Talk]") -> "list[Talk]":
    kept = [talk for talk in talks if talk.label != 1]
    if left := len(talks) - len(kept):
        common.note(f"{left} of {len(talks)} have label 1 and are left out: benign ones are meant here.")
    return kept


# what is shown -----------------------------------------------------------------------------------


def _record(made: Any, model: Any) -> dict[str, Any]:
    card = {key: value for key, value in made.card.items() if key not in ("texts", "calibration_texts")}
    return {"name": made.name, "watches": made.watches, "state": made.state(model), "sites": made.sites,
            "pooling": asdict(made.pooling), "thresholds": {unit: asdict(t) for unit, t in made.thresholds.items()},
            "bound": dict(made.bound), "card": card}  # fmt: skip


def _shown(record: dict[str, Any]) -> str:
    lines = [f"{record['name']}: watches for {record['watches']}; {record['state']}",
             f"reads {', '.join(record['sites'])}; {record['pooling']['name']} over tokens"]  # fmt: skip
    for unit, t in record["thresholds"].items():
        lines.append(f"  {unit:<13} above {t['value']:.3g}: {t['alarms']} of {t['n']} benign ones alert; the true rate lies in"
                     f" {t['low']:.3%} to {t['high']:.3%} (asked: {t['target']:.2%} at most)")  # fmt: skip
    held = record["card"].get("held_out_auroc", {})
    lines += [f"held-out AUROC: {', '.join(f'{site} {value:.3f}' for site, value in list(held.items())[:5])}"] if held else []
    for unit, rows in record["card"].get("slices", {}).items():
        worst = rows[0]
        lines.append(f"  worst slice per {unit}: {worst['slice'][:60] or '(all)'}: {worst['hits']} of {worst['n']}")
    lines.append(f"bound to model {record['bound']['model'][:12]}, made {record['bound']['created']}, expires"
                 f" {record['bound']['expires']}")  # fmt: skip
    return "\n".join(lines)


def _check_out(path: str) -> None:
    """Before any long work: a file that a monitor can be written to."""
    from assay.errors import bad_argument
    from assay.monitor.files import SUFFIX

    check_place("--out", path, folder=False)
    if Path(path).suffix.lower() != SUFFIX:
        raise bad_argument("--out", path, f"a {SUFFIX} file", f"For example {Path(path).with_suffix(SUFFIX)}.")


def _measured(found: Any, chances: bool) -> str:
    """In words. `chances`: whether labelled data made probabilities of scores."""
    value, low, high = found.auroc
    lines = [f"{found.monitor}: {found.state}; {found.n['1']} with and {found.n['0']} without what is watched for"]
    lines.append(f"AUROC {value:.3f} ({low:.3f} to {high:.3f}); Brier {found.brier:.3f}, calibration error {found.ece:.3f}")
    if low == high:
        lines.append("  no error among these texts: draws of them cannot show one, so the interval says nothing")
    if not chances:
        lines.append("  Brier and calibration error are of scores, not of probabilities: calibrate with --labelled DATA")
    for unit, rate in found.recall.items():
        wrong = found.false_alarms[unit]
        inside = "inside" if found.inside[unit] else "OUTSIDE"
        lines.append(f"  {unit:<13} finds {rate.share:.1%} ({rate.low:.1%} to {rate.high:.1%}); false alarms {wrong.share:.2%}"
                     f" ({wrong.low:.2%} to {wrong.high:.2%}), {inside} what calibration lets expect")  # fmt: skip
    for target, recall in found.at.items():
        told = recall if isinstance(recall, str) else f"{recall['hits'] / max(1, recall['n']):.1%}"
        lines.append(f"  recall at a false-alarm rate of {target}: {told}")
    for name, row in found.baselines.items():
        lines.append(f"  beside it, {name}: AUROC {row['auroc']:.3f}")
    lines += [f"  not measured beside it, {name}: {why}" for name, why in found.unmeasured.items()]
    for unit, rows in found.precision.items():
        low = found.precision_low[unit]
        shares = ", ".join(f"{share:.0%} ({low[base]:.0%} or more) at {float(base):.1%}" for base, share in rows.items())
        lines.append(f"  alarms per {unit} that are right, by base rate: {shares}")
    lines += ["  false alarms by slice, worst first:"] * bool(found.slices)
    for row in found.slices[:SLICES]:
        name = row["slice"][:40] or "(all)"
        lines.append(f"    {name:<40}  {row['hits']} of {row['n']} ({row['low']:.1%} to {row['high']:.1%})")
    if len(found.slices) > SLICES:
        lines.append(f"    and {len(found.slices) - SLICES} more (--json has all)")
    return "\n".join(lines)


def _drifted(record: dict[str, Any]) -> str:
    found = f"{record['what']} differ most over {record['n']} replies (p {record['p']:.2g} after {record['tests']} tests)"
    return f"{'DRIFT: ' if record['drifted'] else 'no drift: '}{found}\nthe monitor is {record['state']}"


def _watched(state: str, found: Any) -> str:
    lines = [f"the monitor is {state}"]
    for one in found:
        alerts = f"ALERT ({', '.join(one.alerts)})" if one.alerts else "no alert"
        lines += ["", one.prompt, f"  {one.reply}", f"  {alerts}; " + ", ".join(f"{k} {v:.3g}" for k, v in one.units.items())]
        top = sorted(zip(one.scores, one.pieces, strict=True), reverse=True)[:5]
        lines.append("  highest tokens: " + ", ".join(f"{piece!r} {score:.2f}" for score, piece in top))
    return "\n".join(lines)


monitor.add_command(claim)
monitor.add_command(serve)
