"""What words alone tell of the packaged concepts: the table of docs/concepts.md.

    python benchmarks/concepts.py [--concept NAME ...] [--update-docs]

1. A bag of words and pairs of words (TF-IDF, logistic regression, as `assay probe` has it) is fitted on discover and tune, its
   penalty chosen on held-out tune rows. Of a concept with a marked word, texts end with that word: what a model has read there.
2. AUROC on confirm and ood; *near*: members against near misses only.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "concepts.md"
BEGIN = "<!-- table: begin, written by benchmarks/concepts.py --update-docs -->\n"
END = "<!-- table: end -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; write it where asked for."""
    from assay.data.concept_packages import TABLE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", action="append", choices=list(TABLE))
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args(arguments)
    lines = ["| name | confirm | near | ood | near |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {' | '.join(row_of(name))} |" for name in given.concept or TABLE]
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if given.update_docs:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1], encoding="utf-8")
    return 0


def row_of(name: str) -> list[str]:
    """Confirm, near, ood, near."""
    import numpy as np

    from assay.data.concepts import all_examples
    from assay.probe.baselines import bag_of_words
    from assay.probe.path import folds_of

    splits = all_examples(name).splits
    seen = rows_of([*splits["discover"], *splits["tune"]])
    tune = np.arange(len(seen)) >= len(splits["discover"])
    fitted = bag_of_words(seen, tune, folds_of(seen.labels, seen.groups))
    found = []
    for split in ("confirm", "ood"):
        for near in (False, True):
            chosen = [each for each in splits[split] if not near or each.label or each.near_miss]
            found.append(auroc_of(fitted, rows_of(chosen)))
    return found


def rows_of(examples: Sequence[Any]) -> Any:
    """Texts as a baseline sees them, cut after the word that is marked."""
    import numpy as np

    from assay.data.prepare_concept import PreparedConcept
    from assay.probe.baselines import Rows, groups_of

    cut = [each if each.position is None else replace(each, text=each.text[: each.position + 1]) for each in examples]
    n = len(cut)
    return Rows(PreparedConcept(cut, [[0]] * n, [0] * n, {}), np.array([each.label for each in cut], np.int64),
                groups_of(examples), None, None)  # fmt: skip


def auroc_of(fitted: Any, rows: Any) -> str:
    """AUROC, nothing where one label is missing."""
    from sklearn.metrics import roc_auc_score

    if len(set(rows.labels.tolist())) < 2:
        return ""
    return f"{roc_auc_score(rows.labels, fitted.score(rows)):.2f}"


if __name__ == "__main__":
    sys.exit(main())
