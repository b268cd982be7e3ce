"""Probing: what reading all layers costs beside a forward pass, and fitting all penalties and folds beside scikit-learn.

    python benchmarks/probing.py                          2,000 texts of the Brown corpus, smollm2-135m
    python benchmarks/probing.py --texts 500 --sites 4    smaller
    python benchmarks/probing.py --only fit               one part: read, fit
    python benchmarks/probing.py --only fit --way "loop, lbfgs" --rounds 1    with one way only
    python benchmarks/probing.py --only fit --threads 2   the path with two threads (the loops keep one: more makes them slower)

1. Read: `read_all` of all layers at the last token, against a plain forward pass of the same model on the same batches
   with logits at the last token, and without. Texts of one block take turns; ratios of one round.
2. Fit: 10 penalties x (5 folds of documents + all rows) of some sites; label: fiction or not. Ways take turns:
       loop      a pipeline of StandardScaler and LogisticRegression for every fold and penalty
       reused    rows standardised once per fold, every penalty started from the last one's coefficients
   with the library's solvers, at tolerances where coefficients are equal, and at the library's default.
3. `apart`: the largest relative distance of coefficients of any fit from newton-cholesky at a tolerance of 1e-10.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import environment
from timing import interleaved

PARTS = ("read", "fit")
FOLDS, WORDS, PER_DOCUMENT = 5, 20, 4
FICTION = re.compile(r"c[klmnpr]\d\d")
LOOPS = {
    "loop, lbfgs, default tolerance": ("lbfgs", 1e-4, False), "loop, lbfgs": ("lbfgs", 1e-7, False),
    "reused, lbfgs": ("lbfgs", 1e-7, True), "reused, newton-cholesky": ("newton-cholesky", 1e-6, True),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and print Markdown."""
    options = _options(arguments)
    environment.prepare()
    import torch

    torch.set_num_threads(1)
    from assay import load_model

    model = load_model(options.model)
    prepared = texts(model, options.texts)
    found: dict[str, Any] = {"versions": environment.versions(), "model": options.model, "texts": len(prepared),
                             "threads": options.threads}  # fmt: skip
    for part in options.only or PARTS:
        found[part] = globals()[f"measure_{part}"](model, prepared, options)
    sys.stdout.write(markdown(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    return 0


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--sites", type=int, default=1000, help="sites to fit, evenly spread; default: all")
    parser.add_argument("--way", action="append", choices=list(LOOPS), help="compare with these only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the path; loops have one, which is best for them")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--json")
    return parser.parse_args(arguments)


def texts(model: Any, n: int) -> Any:
    """Stretches of 20 words, four of each document; label 1: fiction."""
    from assay.data.corpora import open_corpus
    from assay.data.prepare_concept import prepare_concept
    from assay.records import Example

    examples = []
    for document in open_corpus("brown").read():
        words = document.text.split()
        for start in range(0, PER_DOCUMENT * 3 * WORDS, 3 * WORDS):
            text = " ".join(words[start + 200 : start + 200 + WORDS])
            examples.append(Example(text, int(bool(FICTION.search(document.id))), document.id))
    return prepare_concept(examples[:n], model)


def measure_read(model: Any, prepared: Any, options: Any) -> dict[str, Any]:
    """Ratios of reading all layers, and of a pass with logits, to a pass without them, over blocks of 200 texts."""
    import numpy as np

    from assay.probe.read import read_all

    order = np.argsort([len(ids) for ids in prepared.tokens], kind="stable")
    sites = ["embed", "resid_post.*"]
    rows = []
    for start in range(0, len(order), 200):
        block = prepared.select(order[start : start + 200].tolist())
        batches = [_padded([block.tokens[row] for row in batch]) for batch in model.batches(block.tokens)]
        runs: dict[str, Callable[[], Any]] = {
            "pass": lambda b=batches: [_forward(model, each, False) for each in b],
            "pass with logits": lambda b=batches: [_forward(model, each, True) for each in b],
            "read": lambda b=block: read_all(model, b, sites, ("last",)),
        }
        if start == 0:
            for run in runs.values():
                run()
        rows.append(interleaved(runs, "pass", 1))
    return {name: {"ratio": statistics.median(row[name].cpu for row in rows), "low": min(row[name].cpu for row in rows),
                   "high": max(row[name].cpu for row in rows), "seconds": sum(row[name].seconds for row in rows)}
            for name in rows[0]}  # fmt: skip


def _padded(tokens: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    import torch

    longest = max(map(len, tokens))
    ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in tokens])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])


def _forward(model: Any, batch: tuple[Any, Any], logits: bool) -> Any:
    """The model's own forward pass, right-padded."""
    import torch

    ids, mask = batch
    with torch.no_grad():
        hidden = model.hf.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return model.hf.lm_head(hidden[torch.arange(len(ids)), mask.sum(1) - 1]) if logits else hidden


def measure_fit(model: Any, prepared: Any, options: Any) -> list[dict[str, Any]]:
    """CPU times of every way, all sites in one go, over that of the batched path; and how far its coefficients are off."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from assay.probe.path import CS, fit_path, folds_of
    from assay.probe.read import read_all

    names = [str(site) for site in model.sites(["embed", "resid_post.*"])]
    chosen = [names[place] for place in sorted({round(p) for p in np.linspace(0, len(names) - 1, options.sites).tolist()})]
    read = read_all(model, prepared, chosen, ("last",))
    y, groups = np.array(prepared.labels), [example.template for example in prepared.examples]
    fold = folds_of(y, groups, FOLDS)
    train = [fold != number for number in range(int(fold.max()) + 1)] + [np.ones(len(y), bool)]
    xs = [read.X[site]["last"].astype(float) for site in chosen]
    threadpool_limits(1)
    exact = [by_library(x, y, train, CS, "newton-cholesky", 1e-10, True) for x in xs]

    def path() -> Any:
        with threadpool_limits(options.threads):
            return fit_path(xs, y, groups, CS, FOLDS)

    runs: dict[str, Callable[[], Any]] = {"path": path}
    for name in options.way or LOOPS:
        solver, tol, reused = LOOPS[name]
        runs[name] = lambda s=solver, t=tol, r=reused: [by_library(x, y, train, CS, s, t, r) for x in xs]
    apart = {}
    for name, run in runs.items():
        made = run()
        apart[name] = max(_apart(made, number, exact[number], x) for number, x in enumerate(xs))
    ratios = interleaved(runs, "path", options.rounds)
    return [{"sites": chosen, "way": name, "apart": apart[name], **asdict(ratio)} for name, ratio in ratios.items()]


def by_library(x: Any, y: Any, train: Sequence[Any], Cs: Sequence[float], solver: str, tol: float, reused: bool) -> Any:
    """Coefficients (train set, C, d) on standardised rows."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.empty((len(train), len(Cs), x.shape[1]))
    for place, rows in enumerate(train):
        z = StandardScaler().fit_transform(x[rows]) if reused else x[rows]
        warm = LogisticRegression(solver=solver, tol=tol, max_iter=100_000, warm_start=True)
        for number, c in enumerate(Cs):
            if reused:
                model = warm.set_params(C=c).fit(z, y[rows])
            else:
                cold = LogisticRegression(solver=solver, tol=tol, max_iter=100_000, C=c)
                model = make_pipeline(StandardScaler(), cold).fit(z, y[rows])[-1]
            found[place, number] = model.coef_[0]
    return found


def _apart(made: Any, number: int, exact: Any, x: Any) -> float:
    """The largest relative distance of a site's coefficients; of a path those of all rows, which it gives."""
    import numpy as np

    if hasattr(made, "coef"):
        spread = np.where(x.std(0) > 0, x.std(0), 1.0)
        found, exact = made.coef[number] * spread, exact[-1]
    else:
        found = made[number]
    return float((np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)).max())


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    threads = "one thread" if found["threads"] == 1 else f"one thread, {found['threads']} for the path"
    lines = [f"{found['model']}, {found['texts']:,} texts, {threads}; {versions}."]
    if read := found.get("read"):
        lines += ["", "| | CPU s | over a forward pass (range over blocks) |", "|---|---|---|"]
        lines += [f"| {name} | {r['seconds']:.1f} | {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}) |"
                  for name, r in read.items()]  # fmt: skip
    if rows := found.get("fit"):
        sites = rows[0]["sites"]
        lines += ["", f"Sites: {', '.join(sites)}.", "",
                  "| way | CPU s a site | over the path (range over rounds) | in wall time | apart |",
                  "|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {r['way']} | {r['seconds'] / len(sites):.2f} | {r['cpu']:.1f} ({r['cpu_low']:.1f} to"
                  f" {r['cpu_high']:.1f}) | {r['wall']:.1f} | {r['apart']:.0e} |" for r in rows]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
