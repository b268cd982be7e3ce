"""Data for the worked repair: places whose largest city is taken for their capital, as task files.

    python recipes/repair_capitals.py --out DIR

1. Every frame asks for a city of a place, "The capital city of Florida is"; the other prompt of a pair asks for the
   largest one, "The largest city of Florida is". Answer: the capital; foil: the largest city.
2. `fault.jsonl`: the places in `FAULTS`, which smollm2-135m gets wrong in most frames. `neighbours.jsonl`: places it gets
   right more often than not, in the same frames; a repair should leave them alone.
3. A frame is a template. Entities are left out on purpose: the same facts must occur in all splits, in frames of their own.

`--measure MODEL` prints how often each place is right, on the frames that fall to discover and tune.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from assay.data.splits import divide
from assay.data.task_files import read_task
from assay.files import write_file

FAULTS = {
    "Florida": ("Tallahassee", "Miami"), "Michigan": ("Lansing", "Detroit"), "Kentucky": ("Frankfort", "Louisville"),
    "Turkey": ("Ankara", "Istanbul"),
}  # fmt: skip
NEIGHBOURS = {
    "Canada": ("Ottawa", "Toronto"), "China": ("Beijing", "Shanghai"), "Scotland": ("Edinburgh", "Glasgow"),
    "Morocco": ("Rabat", "Casablanca"), "Ecuador": ("Quito", "Guayaquil"), "Pakistan": ("Islamabad", "Karachi"),
    "Syria": ("Damascus", "Aleppo"), "Texas": ("Austin", "Houston"),
}  # fmt: skip
FRAMES = (
    "The [K] city of [P] is",
    "The [K] city of [P] is called",
    "The [K] city in all of [P] is",
    "Everybody knows that the [K] city of [P] is",
    "As you may know, the [K] city of [P] is",
    "My aunt moved to the [K] city of [P],",
    "They live in the [K] city of [P], which is called",
    "We drove through [P] and stopped in its [K] city,",
    "The name of the [K] city of [P] is",
    "In [P], the [K] city is",
    "In the middle of [P] we came to the [K] city,",
    "On our trip to [P] we saw the [K] city,",
    "The train crosses [P] and ends in the [K] city,",
    "The [K] city of [P] is named",
    "Of all places in [P], the [K] city is",
    "He was born in [P], in the [K] city,",
    "She teaches at a school in the [K] city of [P],",
    "Our flight to [P] landed near the [K] city,",
    "The road across [P] leads to the [K] city,",
    "Students of geography learn that the [K] city of [P] is",
    "A new hospital was built in the [K] city of [P],",
    "The weather in [P] was fine, even in the [K] city,",
    "The river that runs through [P] passes the [K] city,",
    "Asked about the [K] city of [P], she answered that it is",
    "A map of [P] hangs here. The [K] city is marked:",
    "This is a list of facts about [P]. [K] city:",
    "Question: what is the [K] city of [P]? Answer:",
    "Our guide to [P] begins in the [K] city,",
    "The radio tower of [P] stands in the [K] city,",
    "If you ever go to [P], visit the [K] city,",
    "The concert tour of [P] starts in the [K] city,",
    "The [K] city of [P] goes by the name of",
    "News from [P]: in the [K] city,",
    "I once spent a week in [P], mostly in the [K] city,",
    "The oldest bridge in the [K] city of [P] is closed. The city is called",
    "Every year the people of [P] meet in the [K] city,",
)
KINDS = ("capital", "largest")


def rows(places: dict[str, tuple[str, str]]) -> list[dict[str, object]]:
    """One pair per frame and place."""
    return [_row(frame, place, *cities) for frame in FRAMES for place, cities in places.items()]


def _row(frame: str, place: str, capital: str, largest: str) -> dict[str, object]:
    texts = [frame.replace("[K]", kind).replace("[P]", place) for kind in KINDS]
    spans = [[text.index(place) for text in texts], [text.index(place) + len(place) - 1 for text in texts]]
    return {"clean": texts[0], "corrupted": texts[1], "answer": f" {capital}", "foil": f" {largest}", "template": frame,
            "labels": {"subject": spans[0], "subject_end": spans[1]}}  # fmt: skip


def measure(name: str, file: Path) -> None:
    """Print the share right by place, after the clean prompts and after the others."""
    from assay.data.prepare import prepare
    from assay.model.load import load_model

    model = load_model(name)
    splits = divide(read_task(file)).splits
    task = prepare([*splits["discover"], *splits["tune"]], model)
    clean, other = (model.score(prompts, task.metric()) for prompts in (task.clean, task.corrupted))
    for place in {**FAULTS, **NEIGHBOURS}:
        here = [row for row, pair in enumerate(task.pairs) if place in pair.clean]
        if here:
            right = float((clean[here] > 0).float().mean())
            kept = float((other[here] < 0).float().mean())
            print(f"{place:<12} capital right {right:.2f}, largest right {kept:.2f}, {len(here)} pairs")  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--measure", metavar="MODEL")
    given = parser.parse_args(arguments)
    for name, places in (("fault", FAULTS), ("neighbours", NEIGHBOURS)):
        file = given.out / f"{name}.jsonl"
        write_file(file, "".join(json.dumps(row) + "\n" for row in rows(places)).encode())
        if given.measure:
            measure(given.measure, file)


if __name__ == "__main__":
    main()
