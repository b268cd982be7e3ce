"""`explain`: what one latent or neuron responds to, by a rule that is found and then checked on other documents.

For a whole dictionary, with baselines and tested claims, there is `assay map`. This looks at one unit: the rule is found on the
documents called *shown* and judged on those called *scored*. With another corpus or seed these may be what a claim is tested on
elsewhere, so every document that is read is a look.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import integer, string
from assay.app.blocks import Fact, WindowGroup, WindowRecord, contexts, facts, text
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb
from assay.errors import bad_argument, missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.explain.reading import Reading
    from assay.explain.records import Explanation, Sample, Window
    from assay.model.model import Model

FOLDER = "readings"
SPREAD = 128  # tokens of one document, so that few tokens come from many
LABELS = {"top": "strongest", "quantile": "across its range", "random": "at random", "other": "silent",
          "coactive": "silent, where coactive ones fire", "neighbour": "silent, where neighbours fire",
          "similar": "silent, on a similar text"}  # fmt: skip


@verb("explain", "read", "What one latent or neuron responds to: a rule found on some documents and checked on others, and the"
      " contexts it fires in. Offline; no claim.", long=True, required=("feature",), model=explore.model_name(),
      feature=string("mlp_act.L.N, or latent.NAME.N of a kept dictionary.", longest=400),
      corpus=string("A packaged corpus by name. Default: the first one.", longest=100),
      tokens=integer("Tokens to read.", 20_000, 2000, 400_000), seed=explore.seed())  # fmt: skip
def explain(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.explain.lexical import explain_lexical
    from assay.explain.reading import ReadPlan, read_features
    from assay.explain.sampling import samples
    from assay.mapping.looks import record_reading
    from assay.records import digest

    corpus, feature = _corpus(arguments.get("corpus")), arguments["feature"]
    plan = ReadPlan(tokens=arguments["tokens"], per_document=SPREAD, parts=("shown", "scored"), seed=arguments["seed"])
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        units = _units(workspace, model, feature)
        folder = workspace.atlas / FOLDER / digest([model.digest, units.record, corpus, plan.tokens, plan.seed])[:16]
        reading = read_features(model, units, corpus, folder, plan, lambda stage, done, of: report(f"{stage} tokens", done, of))
        record_reading(workspace.store, model.digest, reading, f"explain {feature}")
        report("looking for a rule", 0, 1)
        found = next(iter(explain_lexical(reading)))
        sample = samples(reading).of(found.feature)
        record = {"feature": found.feature, "explanation": found.text, "explainer": found.explainer, "rule": found.rule,
                  "bits": found.bits, "corpus": corpus, "tokens": {part: reading.n_tokens(part) for part in reading.parts},
                  **_density(reading), "checked": _checked(reading, found), "contexts": _texts(sample)}  # fmt: skip
        return keep_result(workspace.atlas, "explain", arguments, model.digest, found.feature,
                           {"record": record, "blocks": _blocks(record, sample)})  # fmt: skip


def _corpus(name: str | None) -> str:
    from assay.data.corpus_packages import PACKAGES

    if name is not None and name not in PACKAGES:
        raise missing("corpus", name, ", ".join(PACKAGES), "Corpora of your own: assay map, on the command line.")
    return name or next(iter(PACKAGES))


def _units(workspace: "Workspace", model: "Model", feature: str) -> Any:
    from assay.explain.units import of_dictionary, of_neurons
    from assay.sites import parse_site

    site = parse_site(feature)
    if site.name == "latent" and site.path and site.index is not None:
        return of_dictionary(workspace.dictionary(site.path), [site.index])
    if site.name != "mlp_act" or site.index is None:
        raise bad_argument("feature", feature, "a neuron, mlp_act.L.N, or a latent, latent.NAME.N")
    (found,) = model.sites(site)
    return of_neurons(model, str(found.whole), [site.index])


def _density(reading: "Reading") -> dict[str, Any]:
    """At how many of the tokens shown it is on."""
    part = reading.part("shown")
    fired = int(part.codes.nnz)
    return {"fired": fired, "density": fired / max(1, int(part.typical.sum()))}


def _checked(reading: "Reading", found: "Explanation") -> dict[str, Any] | None:
    """Precision and recall of the rule, token by token, on documents it was not found on; None without a rule."""
    import numpy as np

    from assay.explain.lexical import table_of

    if found.rule is None:
        return None
    part = reading.part("scored")
    keep = np.asarray(part.typical, bool)
    said = table_of(part, keep=keep).fires(found.rule)
    on = np.zeros(part.n_tokens, bool)
    on[np.asarray(part.codes.tocsc().indices)] = True
    on = on[keep]
    hits = int((said & on).sum())
    return {"said": int(said.sum()), "on": int(on.sum()), "hits": hits,
            "precision": hits / int(said.sum()) if said.any() else None,
            "recall": hits / int(on.sum()) if on.any() else None}  # fmt: skip


def _texts(sample: "Sample | None", most: int = 8) -> list[dict[str, Any]]:
    """The strongest contexts as text, the token marked."""
    if sample is None:
        return []
    top = [window for window in sample.shown if window.why == "top"][:most]
    return [{"text": "".join(window.pieces[: window.at]) + f"[[{window.pieces[window.at]}]]"
             + "".join(window.pieces[window.at + 1 :]), "value": window.value, "document": window.document}
            for window in top]  # fmt: skip


def _blocks(record: Mapping[str, Any], sample: "Sample | None") -> list[Any]:
    checked = record["checked"]
    note = "token by token, on documents the rule was not found on"
    judged: list[Fact] = [{"label": name, "value": checked[name], "note": note}
              for name in ("precision", "recall")] if checked else []  # fmt: skip
    shown = [contexts("explain-contexts", _groups(sample), sample.largest, title="Where it fires, and where it does not")
             ] if sample else [text("explain-none", "It fires in too few documents to show contexts.")]  # fmt: skip
    return [
        facts("explain-facts", [{"label": "responds to", "value": record["explanation"], "help": "explanation"}, *judged,
                                {"label": "density", "value": record["density"], "help": "density"},
                                {"label": "corpus", "value": record["corpus"]}], title=record["feature"]),
        *shown,
        text("explain-next", "One unit, no baselines, no claim. For tested explanations of many features: assay map."),
    ]  # fmt: skip


def _groups(sample: "Sample") -> list[WindowGroup]:
    groups: dict[str, list[WindowRecord]] = {}
    for window in sample.shown:
        groups.setdefault(LABELS[window.why], []).append(_window(window))
    return [{"label": label, "windows": windows} for label, windows in groups.items()]


def _window(window: "Window") -> WindowRecord:
    return {"pieces": list(window.pieces), "values": list(window.values), "at": window.at, "document": window.document,
            "position": window.position}  # fmt: skip
