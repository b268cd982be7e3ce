"""Do channels that respond to wheels and windows feed the car logits of EfficientNet-Lite0? The table of docs/vision.md.

    python benchmarks/vision.py [--update-docs]

1. Channels of two sites are chosen on discover scenes and measured on others (`vision.channels.find_channels`).
2. Set to their mean on drawn cars, beside random channels of like mean and spread (`vision.channels.feeds`).
3. The same cars drawn without wheels, without windows and without both: the mean probability of the car classes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment

PAGE = Path(__file__).parent.parent / "docs" / "vision.md"
BEGIN, END = "<!-- table: begin, written by benchmarks/vision.py -->", "<!-- table: end -->"
SITES, CHANNELS, CARS_DRAWN, DRAWS, SEED = ("block.blocks.8", "block.blocks.10"), 3, 32, 19, 5
HEAD = ["| site | channels | AUROC on fresh scenes (near misses alone) | fall of car log-odds, less that of random sets | p |",
        "|---|---|---|---|---|"]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the table where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args(arguments)
    environment.prepare()
    from assay.data.images import SIZE, car_names, load_images
    from assay.model.image_load import CARS, load_image_model
    from assay.vision.channels import feeds, find_channels

    model = load_image_model("efficientnet-lite0")
    names = car_names(CARS_DRAWN, SEED)
    drawn = {parts: load_images(car_names(CARS_DRAWN, SEED, parts), SIZE)
             for parts in ("both", "wheels", "windows", "neither")}  # fmt: skip
    templates, lines = [name.split("/")[2] for name in names], list(HEAD)
    for site in SITES:
        for concept in ("wheels", "windows"):
            found = find_channels(model, concept, site, CHANNELS)
            channels = [row.channel for row in found]
            fed = feeds(model, drawn["both"], templates, drawn["neither"], site, channels, CARS, draws=DRAWS)
            shown = f"{_span([row.auroc for row in found])} ({_span([row.near for row in found])})"
            made = fed.contrast
            lines.append(f"| {site.removeprefix('block.')} | {concept} {', '.join(map(str, channels))} | {shown}"
                         f" | {made.estimate:+.2f} ({made.low:.2f} to {made.high:.2f}) | {made.p_above:.3f} |")  # fmt: skip
    sure = {parts: float(model.logits(images).softmax(1)[:, list(CARS)].sum(1).mean()) for parts, images in drawn.items()}
    lines += ["",
              f"Mean probability of the car classes: {sure['both']:.2f} with both parts, {sure['wheels']:.2f} with wheels only,"
              f" {sure['windows']:.2f} with windows only, {sure['neither']:.2f} with neither."]  # fmt: skip
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if given.update_docs:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 0


def _span(values: Sequence[Any]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
