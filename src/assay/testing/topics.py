"""Short texts about known topics: units whose number of concepts is known.

`topic_texts` draws sentences of one topic: a frame shared by all topics, filled with words of the topic. A unit that fires on
one topic holds one concept, on the union of three holds three, on texts of all topics (`mixed_texts`) none in particular.
"""

import random
from collections.abc import Sequence

TOPICS = {
    "cooking": (
        ("chef", "baker", "cook", "grandmother"),
        ("onions", "butter", "soup", "dough", "garlic", "pastry"),
        ("fried", "baked", "stirred", "tasted"),
        ("kitchen", "oven", "restaurant"),
    ),
    "football": (
        ("striker", "goalkeeper", "referee", "coach"),
        ("penalty", "ball", "corner", "header", "pass", "goal"),
        ("kicked", "saved", "missed", "scored"),
        ("stadium", "second half", "cup final"),
    ),
    "banking": (
        ("banker", "investor", "broker", "treasurer"),
        ("loan", "shares", "mortgage", "bonds", "deposit", "dividend"),
        ("sold", "approved", "refused", "audited"),
        ("stock market", "bank branch", "fiscal quarter"),
    ),
    "astronomy": (
        ("astronomer", "telescope", "observatory", "probe"),
        ("comet", "galaxy", "nebula", "moon", "asteroid", "supernova"),
        ("observed", "photographed", "measured", "tracked"),
        ("night sky", "solar system", "orbit of Mars"),
    ),
    "medicine": (
        ("surgeon", "nurse", "doctor", "pharmacist"),
        ("fever", "tumour", "wound", "infection", "fracture", "vaccine"),
        ("treated", "diagnosed", "examined", "bandaged"),
        ("hospital", "clinic", "operating theatre"),
    ),
    "music": (
        ("violinist", "pianist", "conductor", "singer"),
        ("sonata", "chord", "melody", "symphony", "ballad", "overture"),
        ("played", "rehearsed", "composed", "sang"),
        ("concert hall", "opera", "recording studio"),
    ),
    "sailing": (
        ("captain", "sailor", "crew", "helmsman"),
        ("anchor", "mast", "sail", "rudder", "rope", "keel"),
        ("raised", "lowered", "repaired", "steered"),
        ("harbour", "open sea", "storm at sea"),
    ),
    "law": (
        ("judge", "lawyer", "prosecutor", "jury"),
        ("verdict", "evidence", "appeal", "sentence", "contract", "testimony"),
        ("heard", "rejected", "signed", "cited"),
        ("courtroom", "supreme court", "trial"),
    ),
    "gardening": (
        ("gardener", "florist", "farmer", "neighbour"),
        ("roses", "seeds", "hedge", "tulips", "compost", "weeds"),
        ("planted", "watered", "pruned", "pulled"),
        ("greenhouse", "flower bed", "orchard"),
    ),
    "computing": (
        ("programmer", "engineer", "administrator", "hacker"),
        ("server", "compiler", "database", "bug", "password", "script"),
        ("debugged", "installed", "encrypted", "rebooted"),
        ("data centre", "terminal", "cloud"),
    ),
    "railways": (
        ("driver", "conductor", "signalman", "passenger"),
        ("locomotive", "carriage", "ticket", "track", "timetable", "brake"),
        ("boarded", "inspected", "delayed", "coupled"),
        ("station", "tunnel", "platform nine"),
    ),
    "geology": (
        ("geologist", "miner", "surveyor", "volcanologist"),
        ("granite", "lava", "fossil", "quartz", "sediment", "crater"),
        ("dug up", "sampled", "mapped", "drilled"),
        ("quarry", "canyon", "fault line"),
    ),
}
FRAMES = (
    "Yesterday the {who} {did} the {what} in the {where}.",
    "The {what} was {did} by a {who} near the {where}.",
    "In the {where}, a tired {who} finally {did} the {what}.",
    "A young {who} {did} another {what} before the {where} closed.",
    "When the {who} {did} the {what}, the whole {where} went quiet.",
    "First the {what}, then the {where}: the {who} {did} both.",
    "They say that the {who} of the {where} never {did} a {what}.",
    "After lunch the {what} in the {where} was {did} again.",
    "Our {who} talked about the {what}, the {where} and what was {did}.",
    "Has any {who} ever {did} a {what} outside the {where}?",
)


def topic_texts(topics: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """n different texts, as many of each topic."""
    rng, found = random.Random(f"{seed}-{','.join(topics)}"), {}
    while len(found) < n:
        who, what, did, where = (rng.choice(words) for words in TOPICS[topics[len(found) % len(topics)]])
        found[rng.choice(FRAMES).format(who=who, what=what, did=did, where=where)] = None
    return list(found)


def mixed_texts(n: int, seed: int = 0) -> list[str]:
    """n different texts of all topics."""
    return topic_texts(list(TOPICS), n, seed)
