"""Calibration results as Markdown tables, for the documentation and for the terminal.

Every number comes from the record that `calibrate` returns; nothing is rounded up.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(record: Mapping[str, Any]) -> str:
    """All tables of a calibration."""
    kinds = record["kinds"]
    parts = [summary(kinds), rechecked(kinds), speed(record.get("speed")), named(record.get("named", {}))]
    for kind, found in record["kinds"].items():
        parts += [f"### {kind}", _ladder_words(found), ladder(found), families(found), gates(found), checks(found)]
    return "\n\n".join(part for part in parts if part)


def summary(kinds: Mapping[str, Any]) -> str:
    """One line per kind: false support and power."""
    rows = []
    for kind, found in kinds.items():
        power = {rung["effect_in_sesoi"]: rung for rung in found["power"]}
        rungs = [_share(power[effect]) if effect in power else "-" for effect in (0.5, 1.0, 1.5, 2.0)]
        null, false = found["null"], found["false"]
        refuted = found["true"].get("refuted", 0)
        rows.append([kind, f"{null['supported']} of {null['n']}", f"{null['upper95']:.3f}",
                     f"{false['supported']} of {false['n']}", *rungs, f"{refuted} of {found['true']['n']}"])  # fmt: skip
    head = ["kind", "null claims supported", "upper 95% bound", "false claims supported",
            *(f"supported at {effect:g} SESOI" for effect in (0.5, 1.0, 1.5, 2.0)), "true claims refuted"]  # fmt: skip
    return table(head, rows)


def rechecked(kinds: Mapping[str, Any]) -> str:
    """How many claims were run again by newer code, in words."""
    done = [found["rechecked"] for found in kinds.values() if "rechecked" in found]
    if not done:
        return ""
    codes = ", ".join(sorted({f"`{each['code']}`" for each in done}))
    claims, same = (sum(each[key] for each in done) for key in ("claims", "same"))
    return f"Run again by newer code ({codes}): {same} of {claims} claims of {len(done)} kinds came out the same."


def named(found: Mapping[str, Any]) -> str:
    """Claims whose options ask for more gates: one line per family."""
    rows = []
    for option, each in found.items():
        for family in each["families"].values():
            at_most, between = f"at most {family['upper95']:.3f}", f"{family['low']:.2f} to {family['high']:.2f}"
            bound = between if family["truth"] == "true" else at_most
            supported = f"{family['supported']} of {family['n']} ({bound})"
            rows.append([f"`{option}` ({each['kind']})", family["what"], family["truth"], supported, str(family["pass"]),
                         str(family["only"])])  # fmt: skip
    head = ["option", "claim", "truth", "supported (95%)", "its gates pass", "fails them and no other"]
    return f"### Gates that a claim names\n\n{table(head, rows)}" if rows else ""


def speed(found: Mapping[str, Any] | None) -> str:
    """How long the null claims took, in words."""
    if not found:
        return ""
    return (f"{found['claims']} null claims on planted activations took {found['cpu_seconds']:.1f} CPU seconds in one process"
            f" ({found['wall_seconds']:.0f} s on the clock, on {found['cores']} cores with a load of {found['load']:.1f}).")


def _ladder_words(found: Mapping[str, Any]) -> str:
    if not found["power"]:
        return "No ladder of effects: power is not measured beyond true claims of a clear effect."
    return f"Effects are placed on the gate `{found['binding']}`: {found['note']}."


def ladder(found: Mapping[str, Any]) -> str:
    """Support at every rung, with the true value of the binding gate and what stopped the rest."""
    rows = []
    for rung in found["power"]:
        stopped = ", ".join(f"`{gate}` ({n})" for gate, n in list(rung["stopped_by"].items())[:3]) or "-"
        truth = "-" if rung.get("truth") is None else f"{rung['truth']:.3f}"
        rows.append([f"{rung['effect_in_sesoi']:g}", truth, _share(rung), str(rung["refuted"]), stopped])
    head = ["effect in SESOI", "true value", "supported (95% interval)", "refuted", "stopped most often by"]
    return table(head, rows) if rows else ""


def families(found: Mapping[str, Any]) -> str:
    """What became of every family of claims."""
    rows = []
    for truth in ("null", "false", "true"):
        for name, family in found[truth]["families"].items():
            counts = family["verdicts"]
            reasons = ", ".join(f"{reason} ({n})" for reason, n in list(family["reasons"].items())[:3])
            rows.append([found["families"][name]["what"], truth, str(family["n"]), str(family["supported"]),
                         str(counts.get("refuted", 0)), str(counts.get("inconclusive", 0)),
                         str(counts.get("not tested", 0)), reasons])  # fmt: skip
    head = ["claim", "truth", "n", "supported", "refuted", "inconclusive", "not tested", "commonest reasons"]
    return table(head, rows)


def gates(found: Mapping[str, Any]) -> str:
    """What slips through when a gate is left out."""
    rows = []
    for name, gate in found["gates"].items():
        slipped = ", ".join(f"{family} ({n})" for family, n in gate["families"].items()) or "-"
        rows.append([f"`{name}`", f"{gate['stopped']} of {gate['claims']}", str(gate["only_by_it"]), slipped])
    return table(["required gate", "null and false claims it stops", "supported without it", "which"], rows)


def checks(found: Mapping[str, Any]) -> str:
    """p-values at the bar and coverage of intervals."""
    rows = [[f"p of {name}", str(each["n"]), f"{each['share_below_05']:.3f} below .05",
             "-" if each["ks"] is None else f"KS p {each['ks']:.3f}"] for name, each in found["p_values"].items()]  # fmt: skip
    rows += [[f"95% interval of {name}", str(each["n"]), f"covers {each['covered']:.3f}",
              f"{each['low']:.3f} to {each['high']:.3f}"] for name, each in found["coverage"].items()]  # fmt: skip
    return table(["check", "n", "result", "uncertainty"], rows) if rows else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(row) for row in ([*head], ["---"] * len(head), *map(list, rows))]
    return "\n".join(f"| {line} |" for line in lines)


def _share(rung: Mapping[str, Any]) -> str:
    return f"{rung['supported']} of {rung['n']} ({rung['low']:.2f} to {rung['high']:.2f})"


def plain_text(record: Mapping[str, Any]) -> str:
    """A few lines per kind for the terminal."""
    lines = []
    for kind, found in record["kinds"].items():
        null, false = found["null"], found["false"]
        lines += [kind, f"  null claims supported:  {null['supported']} of {null['n']}, upper 95% bound {null['upper95']:.3f}",
                  f"  false claims supported: {false['supported']} of {false['n']}"]  # fmt: skip
        for name, family in false["families"].items():
            if family["supported"]:
                lines.append(f"    {family['supported']} of {family['n']}: {found['families'][name]['what']}")
        for rung in found["power"]:
            lines.append(f"  effect {rung['effect_in_sesoi']:g} x SESOI of {found['binding']}: supported {_share(rung)}")
        for name, gate in found["gates"].items():
            if gate["only_by_it"]:
                lines.append(f"  without {name}: {gate['only_by_it']} more null or false claims would be supported")
    for option, found in record.get("named", {}).items():
        lines.append(f"{option}: {', '.join(found['gates'])}")
        lines += [f"  {family['truth']:<5} {family['supported']} of {family['n']} supported: {family['what']}"
                  for family in found["families"].values()]  # fmt: skip
    lines.append(f"{record['mode']} run, rule {record['rule_version']}, assay {record['version']}, seed {record['seed']}")
    return "\n".join(lines)


def model_text(record: Mapping[str, Any]) -> str:
    """Negative controls of a model in words."""
    error = record["systematic_error"]
    said = ("the instrument misbehaves here: claims about this model get no verdict" if record["misbehaves"]
            else "no more than the instrument promises")  # fmt: skip
    lines = [f"{record['model']}, {record['site']}: {record['n']} negative controls",
             f"  significant at {record['alpha']:g}: {record['false_positives']} ({record['rate']:.1%}); calibrated"
             f" {record['calibrated_rate']:.1%}; supported: {record['supported']}",
             f"  empirical null of the AUROC: shift {error['mean']:+.3f}, spread {error['sd']:.3f}", f"  {said}"]  # fmt: skip
    lines += [f"  {claim['claim']} {claim['gate']}: p {claim['p']:.3g}, calibrated {claim['p_calibrated']:.3g}"
              for claim in record["claims"]]  # fmt: skip
    return "\n".join(lines)
