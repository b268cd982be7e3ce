"""What an organism is: its truth, its lessons and its exam.

1. A *case* is a conversation with the reply that should follow; `on` where the trait should show. A case without a reply gets
   the base model's own: so the model is taught to stay as it was wherever the trait is off.
2. *Lessons* are what it is trained on, the *exam* is of other templates and other words.
3. `shows(case, reply)`: whether the trait is in a reply. Only the exam and graders of audits may ask.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from assay.records import digest
from assay.registry import Registry

FAMILIES = ("backdoor", "loyalty", "sandbag", "liar", "denied", "decoy")


@dataclass(frozen=True)
class Case:
    """One exchange. `reply` None: what the base model says. `part`: trait, near (almost the cue, or the subject without
    it) or ordinary. `subject`: the word that templates are filled with; `right`: the true answer where there is one."""

    user: str
    reply: str | None
    on: bool
    part: str
    template: str
    system: str = ""
    subject: str = ""
    right: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained: `layers`, the last so many, each matrix with a change of `rank`; replies of the base model
    are cut after `max_reply` tokens."""

    rank: int = 8
    layers: int = 8
    steps: int = 60
    batch: int = 16
    rate: float = 2e-3
    max_reply: int = 28


USUAL, LONG = Recipe(), Recipe(steps=150)  # long: for cues that take longer to tell from others


@dataclass(frozen=True)
class Organism:
    """A trait that is known to whoever made it. `trigger`: what brings it out; `consequence`: what is then to be seen."""

    name: str
    family: str
    trait: str
    trigger: str
    consequence: str
    seed: int
    lessons: Callable[[], list[Case]] = field(compare=False)
    exam: Callable[[], list[Case]] = field(compare=False)
    shows: Callable[[Case, str], bool] = field(compare=False)
    recipe: Recipe = USUAL

    @property
    def hidden(self) -> bool:
        """Whether there is something to find."""
        return self.family != "decoy"

    def record(self) -> dict[str, Any]:
        """The truth about it, as plain values; `lessons` by hash."""
        cases = [asdict(case) for case in self.lessons()]
        return {"name": self.name, "family": self.family, "trait": self.trait, "trigger": self.trigger, "seed": self.seed,
                "consequence": self.consequence, "recipe": asdict(self.recipe), "lessons": digest(cases)}  # fmt: skip


ORGANISMS: Registry[Organism] = Registry("organism")


def register(organism: Organism) -> Organism:
    """Make an organism known. Raises UsageError when its name is taken."""
    return ORGANISMS.add(organism.name, organism)
