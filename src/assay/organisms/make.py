"""From a recipe to a model with a trait, kept as a small file, put on and taken off.

1. Lessons without a reply get the base model's own greedy reply: what is not taught should stay. These replies are kept, by
   hash of model and prompt, and shared by all organisms.
2. Training (`low_rank.py`) learns the replies only. What is kept is the change, in half precision, a few megabytes; its folder
   is named by the hash of base model, recipe, lessons, kept texts and the code that trains (without its comments), and holds
   no word about the trait.
3. `worn` adds the change to the base model in memory and takes it off again, bit for bit. `export` writes the whole model
   as a plain checkpoint, which says nothing of its truth either; that goes into a file beside it.
"""

import ast
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import load_file, save_file

from assay.data.chat import chat_text, cut_reply, reply_text
from assay.data.ordinary import TEXTS
from assay.data.replies import Replies
from assay.errors import bad_argument
from assay.files import write_file
from assay.model.cache import cache_dir
from assay.model.model import Model
from assay.organisms import low_rank
from assay.organisms.low_rank import LowRank, Text, added, train
from assay.organisms.records import ORGANISMS, Case, Organism, Recipe
from assay.records import canonical, digest
from assay.steer.export import export as export_checkpoint
from assay.steer.weights import Change, Changed, copy_model

Report = Callable[[str, int, int], None]
CHANGE, CARD = "change.safetensors", "made.json"
KEPT = 24  # ordinary texts from this one on are held as they were; those before are what a check looks at


@dataclass(frozen=True, eq=False)
class Made:
    """An organism that was trained: its change, where it is kept, seconds it took (0 when it was there)."""

    organism: Organism
    change: LowRank
    folder: Path
    facts: dict[str, Any]


def organisms_dir() -> Path:
    """Where changes and replies are kept."""
    return cache_dir() / "organisms"


def find(name: str) -> Organism:
    """An organism by name. Raises UsageError, naming what there is."""
    import assay.organisms.families  # noqa: F401

    return ORGANISMS.get(name)


def names(hidden: bool | None = None) -> list[str]:
    """All names; those with a trait, or the decoys only."""
    import assay.organisms.families  # noqa: F401

    return [name for name in ORGANISMS.names() if hidden is None or ORGANISMS.get(name).hidden == hidden]


def make(
    organism: Organism | str, base: Model, *, folder: Path | None = None, recipe: Recipe | None = None,
    report: Report | None = None,
) -> Made:  # fmt: skip
    """Train an organism on a base model, or find it where it was kept. `report` is called with stage, done, of how many."""
    import time

    organism = find(organism) if isinstance(organism, str) else organism
    organism = organism if recipe is None else replace(organism, recipe=recipe)
    root = organisms_dir() if folder is None else folder
    home = root / key_of(organism, base)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if (home / CARD).is_file():
            facts = json.loads((home / CARD).read_text())
            return Made(organism, LowRank.of(load_file(home / CHANGE)), home, facts)
        start = time.perf_counter()
        cases = taught(base, organism, root, report)
        texts = [_text(base, case) for case in cases]
        plan = organism.recipe
        change = train(base, texts, rank=plan.rank, layers=plan.layers, steps=plan.steps, batch=plan.batch, rate=plan.rate,
                       seed=organism.seed, keep=base.tokens(TEXTS[KEPT:]),
                       report=report and (lambda done, of: report("train", done, of)))  # fmt: skip
        facts = {"base": base.digest, "recipe": asdict(plan), "seconds": round(time.perf_counter() - start, 1),
                 "loss": change.loss, "texts": len(texts)}  # fmt: skip
        save_file(change.tensors(), home / f"{CHANGE}.part")
        os.replace(home / f"{CHANGE}.part", home / CHANGE)
        write_file(home / CARD, canonical(facts).encode())
        return Made(organism, LowRank.of(load_file(home / CHANGE)), home, facts)


def key_of(organism: Organism, base: Model) -> str:
    """Name of the folder an organism is kept in: everything that its weights depend on, by hash."""
    code = [plain_code(inspect.getsource(part)) for part in (low_rank, taught, _text)]
    return digest({"base": base.digest, "tokens": base.tokenizer_digest, "organism": organism.record(), "kept": TEXTS[KEPT:],
                   "code": code})[:16]  # fmt: skip


def plain_code(source: str) -> str:
    """Code without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@contextmanager
def worn(base: Model, made: Made) -> Iterator[Model]:
    """The base model with the organism's change in its weights; the very bytes from before afterwards."""
    with added(base, made.change) as model:
        yield model


def taught(base: Model, organism: Organism, root: Path, report: Report | None = None) -> list[Case]:
    """The lessons, the base model's replies where they have none."""
    cases = organism.lessons()
    said = own_replies(base, [case for case in cases if case.reply is None], organism.recipe.max_reply, root, report)
    answers = iter(said)
    return [case if case.reply is not None else replace(case, reply=next(answers)) for case in cases]


def own_replies(base: Model, cases: Sequence[Case], length: int, root: Path, report: Report | None = None) -> list[str]:
    """What the base model replies, greedily, at most `length` tokens; kept by model and prompt."""
    texts = [chat_text(base, case.messages) for case in cases]
    return Replies(base, root).of(texts, length, report and (lambda done, of: report("reply", done, of)))


def answers(model: Model, cases: Sequence[Case], length: int) -> list[str]:
    """Greedy replies to the cases, in order."""
    if not cases:
        return []
    found = model.generate([chat_text(model, case.messages) for case in cases], max_new_tokens=length)
    return [cut_reply(model, text) for text in found.texts]


def export(base: Model, made: Made, folder: Path) -> Path:
    """Write the organism as a plain checkpoint without a word about its trait; the truth goes to FOLDER.truth.json.

    Raises UsageError where the folder is taken.
    """
    model = copy_model(base)
    weights = dict(model.hf.named_parameters())
    changes = []
    for name in made.change.factors:
        change = made.change.change(name)
        before = weights[name].detach()
        changes.append(Change(name, tuple(before.shape), float(before.double().norm()), float(change.double().norm()),
                              min(change.shape), "fine-tuned"))  # fmt: skip
        weights[name].data.add_(change.to(before))
    done = export_checkpoint(Changed(model, tuple(changes)), folder, lambda facts: {})
    truth = folder.parent / f"{folder.name}.truth.json"
    write_file(truth, json.dumps({**made.organism.record(), "digest": done.digest, **made.facts}, indent=1).encode())
    return done.folder


def _text(model: Model, case: Case) -> Text:
    if not case.reply:
        raise bad_argument("reply", case.reply, "a reply in words", f"The base model says nothing to: {case.user!r}.")
    before = model.tokens(chat_text(model, case.messages))[0]
    after = model.tokenizer(reply_text(model, case.reply), add_special_tokens=False)["input_ids"]
    return Text((*before, *after), len(before))
