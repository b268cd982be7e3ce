"""Words of a command line as values: NAME=VALUE options, and the subject of a claim of any kind."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from assay.errors import UsageError, bad_argument

APART = ("seed", "options", "search")  # settings that have an option of their own


def pairs(option: str, items: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, repeated. Raises UsageError for anything else, or a name given twice."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UsageError(f"{option}: got {item!r}; allowed: NAME=VALUE.")
        if name in found:
            raise UsageError(f"{option}: got {name!r} twice; allowed: once.")
        found[name] = value
    return found


def number(option: str, name: str, text: str, whole: bool = False) -> float:
    """A number. Raises UsageError naming option and name."""
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        raise UsageError(f"{option} {name}: got {text!r}; allowed: a {'whole ' * whole}number.") from error


def settings_of(given: Mapping[str, str], default: Any) -> dict[str, Any]:
    """--set: fields of Settings, each as the type of its default."""
    known = {field.name: getattr(default, field.name) for field in fields(default) if field.name not in APART}
    found: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise bad_argument("--set", name, ", ".join(known))
        kind = type(known[name])
        found[name] = text if kind is str else number("--set", name, text, whole=kind is int)
    return found


def options_of(given: Mapping[str, str]) -> dict[str, Any]:
    """--option: what a kind wants besides, JSON where it reads as JSON, else text."""
    return {name: _json_or_text(text) for name, text in given.items()}


def rule_of(text: str) -> dict[str, Any]:
    """--rule: `concept`, `/pattern/`, words separated by commas, or the JSON object of a rule."""
    given = _json_or_text(text)
    if isinstance(given, dict):
        return given
    if text == "concept":
        return {"type": "concept"}
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        return {"type": "regex", "pattern": text[1:-1]}
    return {"type": "lexicon", "words": [word.strip() for word in text.split(",") if word.strip()]}


def subject_of(subject: str, directions: Sequence[str], parts: Mapping[str, Any]) -> Any:
    """What a kind's `subject` takes: words, features, or an object of named parts.

    Several sites are separated by commas. One direction belongs to each site, or all to the only one. With parts,
    SUBJECT is the part "feature" (a unit, a direction) or "site" (a whole site).
    """
    sites = [site.strip() for site in subject.split(",")]
    features: list[Any] = _features(sites, directions) if directions else list(sites)
    if not parts:
        return features[0] if len(features) == 1 else features
    if len(features) > 1:
        raise UsageError(f"SUBJECT: got {len(features)} features with --part or --rule; allowed: one.")
    from assay.sites import parse_site

    feature = bool(directions) or parse_site(sites[0]).index is not None
    return {"feature" if feature else "site": features[0], **parts}


def _features(sites: Sequence[str], sources: Sequence[str]) -> list[Any]:
    from assay.data.vectors import read_vector
    from assay.evidence.features import direction

    if len(sites) not in (1, len(sources)):
        raise UsageError(f"--direction: got {len(sources)} for {len(sites)} sites; allowed: one for each, or one site.")
    places = list(sites) if len(sites) == len(sources) else [sites[0]] * len(sources)
    return [direction(site, read_vector(source)) for site, source in zip(places, sources, strict=True)]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
