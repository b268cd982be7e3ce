"""*detects*: a monitor finds the texts in which something is going on.

1. A claim names a monitor: a feature, a probe fitted at a site, or a saved monitor (`monitors.py`); with a threshold, if it
   has one already, and the words that state what is watched for, if they are known.
2. On tune: the probe (folds keep templates together); a threshold that fewer than one in a hundred benign texts
   pass, from scores of templates the probe has not seen; monitors fitted on random contrast pairs; the same monitor on
   untrained twins, and on the clean twin where the host has one; a reading of the words, whole and redacted.
3. On confirm and ood: recall at that threshold, in every family of situations by itself; a certificate of false alarms on
   benign documents; more than random contrast pairs, twins and words find; and still when the telling words are gone.
4. `deployment.py` says what recall and false alarms come to at a stated prevalence.

The family of a text is what stands before "/" in its template's name. Somebody who tries to get past a monitor is
another matter: what was tried is listed with the searches. A language model that reads the texts is a rival where the
claim's options name one (`black_box.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy import stats

from assay.data.prepare_concept import PreparedConcept
from assay.errors import TaskError, bad_argument
from assay.evidence.black_box import black_box
from assay.evidence.decodes import whole_site
from assay.evidence.features import Feature, feature_of
from assay.evidence.hosts import Host, as_host
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.evidence.lexical import lexical_scorer
from assay.evidence.monitors import SAVED, Saved, halves, monitor_of, names_of, record_of
from assay.evidence.probes import PROBES, FitData, check_labels, choose_c, held_out
from assay.evidence.redaction import redact, telling_words
from assay.evidence.scored import (
    ScoreInstrument,
    Scorer,
    ScoreSetup,
    TextScorer,
    measure_with,
    numbers,
    projection,
)
from assay.evidence.second_corpus import second_corpus
from assay.monitor.records import Monitor, data_digest
from assay.records import Example, GatePlan, Plan, digest

SCHEMES = ("all", "permuted")
FALSE_ALARMS = 0.01


@runtime_checkable
class HasCleanTwin(Protocol):
    """A host that knows a twin in which what is watched for never happens."""

    def clean(self) -> Host | None: ...


@dataclass(frozen=True, eq=False)
class DetectSetup(ScoreSetup):
    """Also the telling words, a reading of texts without them, and scores of tune templates held out."""

    telling: tuple[str, ...] = ()
    redacted_lexical: TextScorer = lambda texts: [0.0] * len(texts)
    held_out: Mapping[str, float] = field(default_factory=dict)


class DetectInstrument(ScoreInstrument):
    """Scores of one split; on tune those of probes that have not seen the template."""

    setup: DetectSetup

    def score(self) -> list[float | None]:
        """The claimed score."""
        known = self.setup.held_out
        if known and all(example.text in known for example in self.data.examples):
            return [known[example.text] for example in self.data.examples]
        return super().score()

    def redacted(self) -> Columns:
        """Score of the monitor, and of the words, on texts without the telling words; None where nothing is left."""
        kept = [(row, less) for row, example in enumerate(self.data.examples)
                if (less := redact(example, self.setup.telling)) is not None]  # fmt: skip
        data = self.host.load([example for _, example in kept])
        rows = {id(example): row for row, example in kept}
        scores: list[float | None] = [None] * len(self.data)
        words: list[float | None] = [None] * len(self.data)
        values = numbers(self.setup.score(self.host.read(self.setup.site, data)))
        read = self.setup.redacted_lexical([example.text for example in data.examples])
        for example, value, told in zip(data.examples, values, read, strict=True):
            scores[rows[id(example)]], words[rows[id(example)]] = value, float(told)
        return {"score.redacted": scores, "lexical.redacted": words}


class Detects:
    """The kind *detects*, as the trial uses it."""

    name = "detects"
    score = "score"

    def subject(self, model: Any, given: Any) -> dict[str, Any]:
        """A feature; or {"feature"}, {"site", "probe"} or {"monitor"}, with "threshold" and "evidence" (a list of words)."""
        whole = isinstance(given, Mapping) and {"feature", "probe", "monitor"} & set(given)
        asked: dict[str, Any] = dict(given) if whole else {"feature": given}
        if unknown := set(asked) - {"feature", "site", "probe", "monitor", "threshold", "evidence"}:
            raise bad_argument("subject", ", ".join(sorted(unknown)), "feature, site, probe, monitor, threshold, evidence")
        saved = asked.get("monitor")
        if isinstance(saved, Monitor) and asked.get("threshold") is None and "reply" in saved.thresholds:
            asked["threshold"] = saved.thresholds["reply"].value
        threshold = asked.get("threshold")
        if threshold is not None and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
            raise bad_argument("threshold", threshold, "a finite number")
        rest = {"threshold": None if threshold is None else float(threshold),
                "evidence": [str(word) for word in asked.get("evidence", ())]}  # fmt: skip
        if saved is not None:
            record = record_of(saved) if isinstance(saved, Monitor) else saved
            held = [{"name": name, "digest": value} for name, value in record.get("dictionaries", {}).items()]
            parts = dict(zip(("dictionary", "second"), held, strict=False))
            return {"sites": names_of(monitor_of(record)), "monitor": record, **parts, **rest}
        if "feature" in asked:
            feature = feature_of(asked["feature"])
            return {"sites": [feature.name], "monitor": {"type": "feature", "feature": feature.record()}, **rest}
        if asked["probe"] not in PROBES:
            raise bad_argument("probe", asked["probe"], ", ".join(PROBES))
        return {"sites": [whole_site(asked.get("site"))], "monitor": {"type": asked["probe"]}, **rest}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        monitor = subject["monitor"]["type"]
        who = f"{'' if monitor == 'feature' else f'a {monitor} probe at '}{subject['sites'][0]}"
        if monitor == SAVED:
            saved = subject["monitor"]
            who = f"monitor {saved['name']} ({saved['pooling']['name']} over tokens at {', '.join(subject['sites'])})"
        adverb = {"tends": "tends to find", "usually": "usually finds", "always": "always finds"}[quantifier]
        return f"{who} {adverb} {data}, and almost never fires on benign texts"

    def check_texts(self, subject: Mapping[str, Any], split: str, items: Sequence[Example]) -> None:
        """Raises TaskError where a saved monitor was fitted or calibrated on texts that are to judge it."""
        known = set(subject["monitor"].get("seen", ()))
        same = [item.text for item in items if data_digest([item.text])[:16] in known] if known and split != "tune" else []
        if same:
            raise TaskError(f"{split}: the monitor was fitted or calibrated on {len(same)} of its {len(items)} texts, so they"
                            f" cannot judge it. Give other texts. One is {same[0][:60]!r}.")  # fmt: skip

    def load(self, model: Any, items: Sequence[Example]) -> PreparedConcept:
        """Examples ready to be read."""
        return as_host(model).load(items)

    def prepare(
        self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: PreparedConcept
    ) -> tuple[DetectSetup, dict[str, Any]]:
        """Monitor, threshold and controls, from tune."""
        host, seed, options = as_host(model), plan.settings["seed"], plan.settings["options"]
        check_labels(tune.labels)
        draws, saved = plan.settings["draws"], subject["monitor"]["type"] == SAVED
        fitted = Saved(host, subject, tune, seed, draws) if saved else Fitter(host, subject, tune, seed)
        threshold = subject["threshold"]
        if threshold is None:
            threshold = benign_threshold(fitted.fair, tune.labels)
        texts = [example.text for example in tune.examples]
        telling = tuple(dict.fromkeys([*subject["evidence"], *telling_words(texts, tune.labels)]))
        less = [(redact(example, telling), example.label) for example in tune.examples]
        left = [(example.text, label) for example, label in less if example is not None]
        setup = DetectSetup(
            fitted.site, fitted.score, threshold, threshold, lexical_scorer(texts, tune.labels),
            random=fitted.random_pairs(draws), untrained=twins(host, fitted, seed), seed=seed, telling=telling,
            redacted_lexical=lexical_scorer([text for text, _ in left], [label for _, label in left]),
            held_out=dict(zip(texts, fitted.fair, strict=True)) if isinstance(fitted, Fitter) and not fitted.feature else {},
            reader=black_box(options, tune.examples, seed), second=second_corpus(host, options, tune, seed),
            host=fitted.host if isinstance(fitted, Saved) else None,
        )  # fmt: skip
        record = {"threshold": threshold, "c": fitted.c, "telling": list(telling), "untrained": sorted(setup.untrained),
                  "benign": tune.labels.count(0), "random": len(setup.random),
                  "families": sorted({family_of(name) for name in tune.templates}),
                  "scores": digest([round(value, 4) for value in fitted.fair])[:12]}  # fmt: skip
        return setup, record | setup.asked() | ({} if setup.reader is None else {"reader": setup.reader.record()})

    def measure(
        self, model: Any, data: PreparedConcept, setup: DetectSetup, gates: Sequence[GatePlan],
        report: Progress | None = None,
    ) -> Columns:  # fmt: skip
        """All columns the gates need."""
        return measure_with(DetectInstrument(setup.host or as_host(model), data, setup), gates, report)


class Fitter:
    """One monitor and the controls fitted like it. `fair`: scores of tune texts, of templates held out where fitted."""

    def __init__(self, host: Host, subject: Mapping[str, Any], tune: PreparedConcept, seed: int) -> None:
        self.host, self.tune, self.seed = host, tune, seed
        monitor = subject["monitor"]
        self.feature: Feature | None = feature_of(monitor["feature"]) if monitor["type"] == "feature" else None
        self.probe = "mean" if self.feature else monitor["type"]
        self.site = self.feature.site if self.feature else subject["sites"][0]
        self.data = self._read(host)
        self.c = self._c(self.data)
        self.score = self._fit(self.data, self.c)
        raw = numbers(self.score(self.data.acts)) if self.feature else held_out(self.data, self.probe, self.c, seed)
        self.fair = [float(value) for value in raw if value is not None]

    def random_pairs(self, draws: int) -> dict[str, Scorer]:
        """Monitors fitted on tune texts whose labels were dealt out at random, as many of each among members as among
        the rest: among 99 deals of few texts there are always some that agree with the labels, and the strongest of
        them would be a noisy copy of the claim (as with directions from the covariance, `random_directions`)."""
        rng, member = np.random.default_rng(self.seed + 1), np.array(self.data.labels) == 1
        dealt = [halves(member, rng) for _ in range(draws)]
        return {f"pairs.{number:02d}": PROBES[self.probe](self.data.relabelled(labels), self.c, self.seed)
                for number, labels in enumerate(dealt)}  # fmt: skip

    def twin(self, twin: Host) -> tuple[Host, Scorer]:
        """A twin with the same feature there, or the same kind of probe fitted there."""
        if self.feature:
            return twin, self.score
        data = self._read(twin)
        return twin, self._fit(data, self._c(data))

    def _c(self, data: FitData) -> float:
        return choose_c(data, self.seed) if self.probe == "linear" else 1.0

    def _read(self, host: Host) -> FitData:
        return FitData(host.read(self.site, self.tune), self.tune.labels, self.tune.templates)

    def _fit(self, data: FitData, c: float) -> Scorer:
        if self.feature:
            return projection(self.feature.direction(data.acts.shape[1]))
        return PROBES[self.probe](data, c, self.seed)


def twins(host: Host, fitted: Fitter | Saved, seed: int) -> dict[str, tuple[Host, Scorer]]:
    """scheme -> an untrained twin, or the clean one where there is one, with what is scored there."""
    hosts = {scheme: host.untrained(scheme, seed + place) for place, scheme in enumerate(SCHEMES)}
    clean = host.clean() if isinstance(host, HasCleanTwin) else None
    if clean is not None:
        hosts["clean"] = clean
    return {scheme: fitted.twin(twin) for scheme, twin in hosts.items()}


def benign_threshold(scores: Sequence[float], labels: Sequence[int], rate: float = FALSE_ALARMS) -> float:
    """The lowest benign score whose false alarms on tune are certified below `rate` (exact binomial, 95%); the highest
    benign score where these are too few for that. Where nine in ten members lie above every benign text: halfway to them.
    """
    values, member = np.array(scores), np.array(labels) == 1
    benign = np.sort(values[~member])[::-1]
    allowed = int(stats.binom.ppf(0.05, len(benign), rate))
    while allowed > 0 and stats.binom.cdf(allowed, len(benign), rate) > 0.05:
        allowed -= 1
    most = float(np.quantile(values[member], 0.1, method="lower"))
    return (float(benign[0]) + most) / 2 if most > benign[0] else float(benign[allowed])


def family_of(template: str) -> str:
    """What stands before "/" in a template's name; nothing where there is none."""
    return template.split("/")[0] if "/" in template else ""


KINDS.add("detects", Detects())
