"""Repeated sequences for the planted induction model, as a task file with many templates."""

import json
import random
from pathlib import Path

from assay.testing import WORDS


def write_task(path: Path, n_templates: int = 40, per_template: int = 4, seed: int = 0) -> Path:
    """ "a b c d  a b" -> "c"; corrupted: another word in the place of the first "c"."""
    rng = random.Random(seed)
    lines = []
    for number in range(n_templates):
        length, lead = rng.randrange(5, 12), rng.randrange(0, 4)
        back = rng.randrange(1, length - 1)
        for _ in range(per_template):
            words = rng.sample([f"w{word}" for word in range(WORDS)], length + lead + 1)
            first, new, before = words[:length], words[length], words[length + 1 :]
            other = [new if place == back else word for place, word in enumerate(first)]
            lines.append({"clean": " ".join(before + first + first[:back]), "answer": " " + first[back],
                          "corrupted": " ".join(before + other + first[:back]), "foil": " " + new,
                          "template": f"{number}: {length} words, {back} repeated, {lead} before"})  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
