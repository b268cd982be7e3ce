"""Do channels of EfficientNet-Lite0 stand for wheels and windows, and carry the car classes? The table of docs/vision.md.

    python benchmarks/vision.py [--atlas DIR] [--update-docs]

1. For each part: `assay vision find` (chosen on discover, measured on tune; states two claims) and `assay vision test`.
2. The same cars drawn without wheels, without windows and without both: the mean probability of the car classes.
3. Pictures: the probes with the channels' heat maps, and the gates of every verdict.

What an atlas has is not measured again: a killed run goes on where it was, and a table is made again in seconds.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGE, IMAGES = ROOT / "docs" / "vision.md", ROOT / "docs" / "images"
BEGIN, END = "<!-- table: begin, written by benchmarks/vision.py -->", "<!-- table: end -->"
MODEL, SITE, CHANNELS, DRAWS, CARS_DRAWN, SEED = "efficientnet-lite0", "block.blocks.10", 2, 19, 32, 5
PARTS = ("windows", "wheels")
HEAD = ["| claim | verdict | because | gates that decide, on confirm (bar) |", "|---|---|---|---|"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print, and write the table where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--atlas", type=Path, default=Path("atlas-vision"))
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args(arguments)
    environment.prepare()
    from assay.atlas.store import Atlas
    from assay.cli.vision_claims import picture_claims
    from assay.model.image_load import load_image_model

    for part in PARTS:
        if not any(claim.task.get("corruption", claim.task["name"]) == part for claim in picture_claims(Atlas(given.atlas))):
            assay(given.atlas, "find", MODEL, part, "--site", SITE, "--n", str(CHANNELS), "--set", f"draws={DRAWS}")
    store = Atlas(given.atlas)
    if any(store.verdict(claim.id) is None for claim in picture_claims(store)):
        assay(given.atlas, "test")
    found = [(claim, store.verdict(claim.id)) for claim in picture_claims(store)]
    model = load_image_model(MODEL)
    text = "\n".join([*HEAD, *(row(claim, verdict) for claim, verdict in found), "", odds(model)])
    sys.stdout.write(text + "\n")
    if given.update_docs:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
        draw(model, found)
    return 0


def assay(atlas: Path, *words: str) -> None:
    """One command of `assay vision`."""
    from assay.cli.vision import vision

    vision.main([*words, "--atlas", str(atlas)], standalone_mode=False)


def row(claim: Any, verdict: Any) -> str:
    """One line of the table: every deciding gate that did not pass, or all of them."""
    gates = [gate for gate in verdict.gates if gate["required"] and "@" not in gate["name"]]
    failed = [gate for gate in gates if not gate["passed"]] or gates
    told = ", ".join(f"{gate['name']} {gate['estimate']:.2f} ({gate['low']:.2f} to {gate['high']:.2f}; {gate['sesoi']:g})"
                     for gate in failed)  # fmt: skip
    passed = f"{len(gates) - len(failed)} of {len(gates)} passed; not " if len(failed) < len(gates) else ""
    return f"| {claim.statement} | {verdict.verdict} | {', '.join(verdict.reasons)} | {passed}{told} |"


def odds(model: Any) -> str:
    """The probability of the car classes by what is drawn."""
    from assay.data.images import SIZE, car_names, load_images
    from assay.model.image_load import CARS

    sure = {}
    for parts in ("both", "wheels", "windows", "neither"):
        logits = model.logits(load_images(car_names(CARS_DRAWN, SEED, parts), SIZE))
        sure[parts] = float(logits.softmax(1)[:, list(CARS)].sum(1).mean())
    return (f"Mean probability of the car classes: {sure['both']:.2f} with both parts, {sure['wheels']:.2f} with wheels only,"
            f" {sure['windows']:.2f} with windows only, {sure['neither']:.2f} with neither.")  # fmt: skip


def draw(model: Any, found: Sequence[Any]) -> None:
    """The pictures of the page: probes with heat maps, and gates."""
    from assay.report.card_figures import card_forest
    from assay.report.vision_page import heat_figure
    from assay.vision.claims import seen

    for claim, verdict in found:
        name = f"vision-{claim.kind}-{claim.task.get('corruption', claim.task['name'])}"
        save(heat_figure(seen(model, claim, 4)), IMAGES / f"{name}.png")
        save(card_forest(verdict.to_json()), IMAGES / f"{name}-gates.png")


def save(figure: Any, path: Path) -> None:
    """A small PNG of 128 colours."""
    from assay.report.figures import figure_png

    image = Image.open(io.BytesIO(figure_png(figure, dpi=80))).convert("RGB").quantize(128)
    image.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
