"""Claims that an edge connects, on models whose edges are known: how many true ones are supported, how many false ones.

    python benchmarks/edge_claims.py                    15 models, all true edges, 5 false ones of each
    python benchmarks/edge_claims.py --false 20         more false ones
    python benchmarks/edge_claims.py induction-8        this model

Each claim is stated, locked and tested as a user's is: 12, 24 and 24 templates in tune, confirm and ood, no text in two of
them, a store of its own. False edges are drawn at random from those of the graph that are not true. Exit 1 when a false one is
supported.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import environment


def main(arguments: Sequence[str] | None = None) -> int:
    """One row per model; 1 when a false edge is supported."""
    parser = argparse.ArgumentParser(description="Error rates of claims about edges.")
    parser.add_argument("models", nargs="*", help="names; none: all")
    parser.add_argument("--false", type=int, default=5, help="false edges of each model (default: 5)")
    options = parser.parse_args(arguments)
    environment.prepare()
    from assay.statistics import clopper_pearson
    from assay.testing.edge_truth import TRUTHS

    total: Counter[tuple[bool, str]] = Counter()
    sys.stdout.write("| model | true supported | undecided | refuted | false supported | undecided | refuted |\n")
    sys.stdout.write("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
    for name in options.models or TRUTHS.names():
        found = tried(name, options.false)
        total += found
        sys.stdout.write(row(name, found))
        sys.stdout.flush()
    sys.stdout.write(row("all", total))
    n = sum(count for (true, _), count in total.items() if not true)
    sys.stdout.write(f"\nfalse support: {total[False, 'supported']} of {n},"
                     f" at most {clopper_pearson(total[False, 'supported'], n)[1]:.3f} (95%)\n")  # fmt: skip
    return int(total[False, "supported"] > 0)


def tried(name: str, n_false: int) -> Counter[tuple[bool, str]]:
    """(whether true, verdict) -> how many, of one model."""
    from assay.circuits.graph import graph_of
    from assay.evidence.memory import MemoryStore
    from assay.evidence.run import Settings, Statement, state_claim, test_claim
    from assay.evidence.source import MemorySource
    from assay.testing.edge_truth import TRUTHS

    truth = TRUTHS.get(name)
    model = truth.model()
    graph = graph_of(model)
    false = [str(edge) for edge in graph.edges(truth.asked(graph) & ~truth.mask(graph))]
    drawn = random.Random(0).sample(false, min(n_false, len(false)))
    source = MemorySource(name, dict(splits(truth)))
    settings = Settings(tune=24, confirm=48, ood=48, draws=19, control_pairs=1)
    found: Counter[tuple[bool, str]] = Counter()
    for true, edges in ((True, truth.edges), (False, drawn)):
        for edge in edges:
            store = MemoryStore()
            claim, _ = state_claim(store, model, source, edge, statement=Statement("connects"), settings=settings)
            found[true, test_claim(store, claim.id, model, source=source).verdict] += 1
    return found


def splits(truth: object) -> Iterable[tuple[str, list]]:
    """Pairs by split, without texts that an earlier split has."""
    seen: set[str] = set()
    for seed, (split, n) in enumerate({"tune": 12, "confirm": 24, "ood": 24}.items()):
        pairs = [pair for pair in truth.pairs(n, 4, seed) if not {pair.clean, pair.corrupted} & seen]  # type: ignore[attr-defined]
        seen |= {text for pair in pairs for text in pair.texts}
        yield split, [replace(pair, template=f"{split} {pair.template}") for pair in pairs]


def row(name: str, found: Counter[tuple[bool, str]]) -> str:
    """A line of the table."""
    cells = [str(found[true, verdict]) for true in (True, False) for verdict in ("supported", "inconclusive", "refuted")]
    return f"| {name} | {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main())
