"""Statements made by rule, whose words tell nothing of their label: capitals and cities, and the order of two dates.

truth: 1. Countries of more than `PEOPLE` people, their capitals and their cities of more than `CITY` people come from the
   tables of GeoNames. A city whose name is also that of a city of `TOWN` people in another country is left out.
   2. Countries are dealt to splits by the hash of their names, and every split has frames of its own: no country, no
   city and no frame is on two sides. The frame is the group; country and city are the entities. No statement is called
   false that puts a city in a country which has a town of that name.
   3. True: a country and its capital, or one of its cities. False: a city of a country of another continent. Near miss:
   the country's own largest city that is not its capital, or a country of the same continent, a neighbour if there is
   one in the split. Within a frame a city is used about as often in true as in plainly false statements.
date_order: 1. Two dates of different days; label 1 when the one named first is the earlier. Years are dealt to splits
   by their hash, frames are a split's own.
   2. Every pair of dates is used in both orders, in the same frame: no set of words tells the label.
   3. Near misses are wrong orders within one year, where the year tells nothing; the right orders of those pairs are
   members.

Neither says how sure anybody is of these facts. Negated statements are not among them.
"""

import calendar
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from assay.data.splits import SHARES, SPLITS
from assay.records import Example

PEOPLE, TOWN, CITY = 4_000_000, 15_000, 1_000_000
CITIES = 3  # of a country, beside its capital
PER_FRAME = 24  # countries or pairs of dates in one frame, at most
YEARS = range(1500, 2020)
WITH_ARTICLE = {"United States", "United Kingdom", "Philippines", "Central African Republic", "Gambia",
                "Dominican Republic", "Democratic Republic of the Congo", "Republic of the Congo", "Ivory Coast",
                "United Arab Emirates", "Bahamas", "Maldives", "Solomon Islands", "Comoros", "Seychelles"}  # fmt: skip
NOT_SAID = {"Kosovo", "Palestinian Territory", "Taiwan", "Western Sahara", "Hong Kong", "Macao", "Puerto Rico", "Israel",
            "Bolivia", "South Africa", "Sri Lanka", "Benin", "Tanzania", "Myanmar", "Nigeria", "Ivory Coast", "Eswatini",
            "Burundi", "Malaysia", "Chile", "Montenegro", "Singapore", "Kuwait", "Djibouti", "Panama",
            "Guatemala", "Luxembourg", "Mexico", "San Marino", "Monaco", "Georgia", "Guinea-Bissau", "Kazakhstan",
            "Equatorial Guinea", "The Netherlands", "Trinidad and Tobago"}  # fmt: skip
"""Countries whose capital is disputed, moved, shared, or has the country's name in it."""

CAPITALS: Mapping[str, Sequence[str]] = {
    "discover": ("[Y] is the capital of [X].", "The capital of [X] is [Y].", "The government of [X] sits in [Y]."),
    "tune": ("The capital city of [X] is called [Y].", "As its capital, [X] has [Y].", "[X] is governed from [Y].",
             "The seat of government of [X] is [Y]."),
    "confirm": ("If you ask for the capital of [X], the answer is [Y].", "Ministers of [X] work in its capital, [Y].",
                "[Y] serves as the capital of [X].", "On maps of [X], the capital is marked as [Y].",
                "The parliament of [X] meets in its capital, [Y].", "Among the cities of [X], the capital is [Y].",
                "Every schoolbook says that the capital of [X] is [Y]."),
    "ood": ("Q: What is the capital of [X]? A: [Y].", "Capital of [X]: [Y].", "Country: [X]. Capital: [Y].",
            "Embassies to [X] are found in the capital, [Y].", "My uncle was right that [Y] is the capital of [X]."),
}  # fmt: skip
PLACES: Mapping[str, Sequence[str]] = {
    "discover": ("The city of [Y] is in [X].", "[Y] is a city in [X].", "You will find [Y] in [X]."),
    "tune": ("[Y] lies in [X].", "The people of [Y] live in [X].", "One of the cities of [X] is [Y].",
             "[Y] belongs to the country of [X]."),
    "confirm": ("To see [Y], you must travel to [X].", "The country in which [Y] is located is [X].",
                "[Y] can be found on a map of [X].", "A train that stops in [Y] is running through [X].",
                "Those who were born in [Y] were born in [X].", "The mayor of [Y] pays taxes in [X].",
                "Among the larger cities of [X] is [Y]."),
    "ood": ("Q: In which country is [Y]? A: [X].", "City: [Y]. Country: [X].", "[Y], [X].",
            "She sent a postcard from [Y], so she must have been in [X].", "The weather report for [X] also covers [Y]."),
}  # fmt: skip
ORDERS: Mapping[str, Sequence[str]] = {
    "discover": ("The letter is dated [A] and the answer [B].", "It began on [A] and it ended on [B].",
                 "They met on [A] and parted on [B].", "From [A] to [B].", "Written on [A], read on [B].",
                 "He left on [A]; he was back on [B]."),
    "tune": ("The bridge was opened on [A] and closed on [B].", "Sown on [A], reaped on [B].",
             "The lease runs from [A] until [B].", "She signed on [A] and paid on [B].",
             "The first meeting was on [A], the second on [B].", "We ordered it on [A] and received it on [B].",
             "The king was crowned on [A] and buried on [B].", "[A] comes before [B]."),
    "confirm": ("The siege started on [A] and was lifted on [B].", "The ship sailed on [A] and landed on [B].",
                "He was born on [A] and died on [B].", "The law was passed on [A] and repealed on [B].",
                "Found on [A], returned on [B].", "The play opened on [A] and closed its run on [B].",
                "The patient fell ill on [A] and recovered on [B].", "The tower was begun on [A] and finished on [B].",
                "Our records start on [A] and stop on [B].", "The guests came on [A] and went home on [B].",
                "The treaty was signed on [A]; it expired on [B].", "The comet was first seen on [A] and last seen on [B]."),
    "ood": ("Start: [A]. End: [B].", "Is [A] earlier than [B]?", "Entry: [A]; exit: [B].", "[A], then [B].",
            "Valid from [A]. Valid until [B].", "Opened [A], closed [B].", "Born [A], died [B].", "First [A], later [B].",
            "Sent: [A]. Received: [B].", "Arrival [A], departure [B]."),
}  # fmt: skip


class Country(NamedTuple):
    name: str
    continent: str
    capital: str
    cities: tuple[str, ...]  # large ones that are not the capital, the largest first
    neighbours: frozenset[str]
    towns: frozenset[str] = frozenset()  # its places of `TOWN` people or more

    @property
    def said(self) -> str:
        return f"the {self.name}" if self.name in WITH_ARTICLE else self.name


# capitals and cities -----------------------------------------------------------------------------


def truth(countries: Sequence[Mapping[str, Any]], cities: Sequence[Mapping[str, Any]]) -> dict[str, list[Example]]:
    """True and false statements by split, from the rows of GeoNames' tables of countries and of cities."""
    by_split = dealt(countries_of(countries, cities), "truth")
    found: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for split, some in by_split.items():
        for frame in CAPITALS[split]:
            found[split] += _capital_statements(frame, some)
        for frame in PLACES[split]:
            found[split] += _place_statements(frame, some)
    return found


def countries_of(countries: Sequence[Mapping[str, Any]], cities: Sequence[Mapping[str, Any]]) -> dict[str, Country]:
    """The countries of step 1, by name."""
    named = {row["iso"]: row["name"] for row in countries}
    places: dict[str, list[tuple[int, str]]] = {}
    where: dict[str, set[str]] = {}
    for row in cities:
        where.setdefault(row["name"], set()).add(row["countrycode"])
        places.setdefault(row["countrycode"], []).append((int(row["population"]), row["name"]))
    found = {}
    for row in countries:
        name, capital, own = row["name"], row["capital"], places.get(row["iso"], [])
        large = [city for people, city in sorted(own, reverse=True) if people >= CITY and len(where[city]) == 1
                 and city != capital and capital not in city and city not in capital and _plain(city)]  # fmt: skip
        if (int(row["population"]) < PEOPLE or not capital or name in NOT_SAID or capital in name or name in capital
                or capital not in {city for _, city in own} or not _plain(capital)):  # fmt: skip
            continue
        beside = frozenset(named[code] for code in str(row["neighbours"]).split(",") if code in named)
        found[name] = Country(name, row["continentcode"], capital, tuple(dict.fromkeys(large))[:CITIES], beside,
                              frozenset(city for _, city in own))  # fmt: skip
    return found


def _plain(name: str) -> bool:
    return name.replace(" ", "").replace("-", "").isalpha()


def _capital_statements(frame: str, some: Sequence[Country]) -> Iterator[Example]:
    for country in _some(frame, some):
        yield _statement(frame, country, country.capital, 1)
        if far := _other(frame, country, some, near=False):
            yield _statement(frame, country, far.capital, 0, also=far)
        if country.cities:
            yield _statement(frame, country, country.cities[0], 0, near=True)


def _place_statements(frame: str, some: Sequence[Country]) -> Iterator[Example]:
    for country in _some(frame, some):
        city = min((country.capital, *country.cities), key=lambda city: _hash(frame, city))
        yield _statement(frame, country, city, 1)
        elsewhere = [other for other in some if city not in other.towns]
        if far := _other(frame, country, elsewhere, near=False):
            yield _statement(frame, far, city, 0, also=country)
        if close := _other(frame, country, elsewhere, near=True):
            yield _statement(frame, close, city, 0, also=country, near=True)


def _some(frame: str, countries: Sequence[Country]) -> list[Country]:
    return sorted(countries, key=lambda country: _hash(frame, country.name))[:PER_FRAME]


def _other(frame: str, country: Country, some: Sequence[Country], near: bool) -> Country | None:
    """Another country of the split: of this continent, neighbours first; or of another continent, each about as often."""
    others = [other for other in some if (other.continent == country.continent) == near and other != country]
    if near and (beside := [other for other in others if other.name in country.neighbours]):
        others = beside
    return min(others, key=lambda other: _hash(frame, country.name, other.name), default=None)


def _statement(frame: str, country: Country, city: str, label: int, also: Country | None = None, near: bool = False) -> Example:
    said = frame.replace("[X]", country.said).replace("[Y]", city)
    entities = (country.name, city, *(() if also is None else (also.name,)))
    return Example(said[0].upper() + said[1:], label, frame, entities, None, near)


# dates -------------------------------------------------------------------------------------------


def date_order() -> dict[str, list[Example]]:
    """Two dates in a sentence, by split; label 1 when the first is the earlier."""
    by_split = dealt({str(year): year for year in YEARS}, "date_order")
    return {split: [example for frame, number in product(ORDERS[split], range(PER_FRAME))
                    for example in _both_orders(frame, number, by_split[split])] for split in SPLITS}  # fmt: skip


def _both_orders(frame: str, number: int, years: Sequence[int]) -> list[Example]:
    """A pair of dates in both orders; every third pair is of one year."""
    draw = int(_hash(frame, str(number)), 16)
    one, other = years[draw % len(years)], years[(draw >> 32) % len(years)]
    close = number % 3 == 2
    early, late = sorted((one, one if close else other))
    days = sorted(((draw >> 64) % 365, (draw >> 80) % 365))
    if early == late:  # two months at least
        first, second = (early, days[0] % 150), (late, 210 + days[1] % 150)
    else:
        first, second = (early, days[0] if draw & 1 else days[1]), (late, days[1] if draw & 1 else days[0])
    entities = tuple(dict.fromkeys((str(early), str(late))))
    pair = (_date(*first), _date(*second))
    right, wrong = _filled(frame, *pair), _filled(frame, *reversed(pair))
    return [Example(right, 1, frame, entities), Example(wrong, 0, frame, entities, None, early == late)]


def _filled(frame: str, first: str, second: str) -> str:
    return frame.replace("[A]", first).replace("[B]", second)


def _date(year: int, day: int) -> str:
    """The day of a year without leap days, 0 to 364, in words."""
    month = 1
    while day >= (length := calendar.monthrange(1999, month)[1]):
        day, month = day - length, month + 1
    return f"{day + 1} {calendar.month_name[month]} {year}"


# ------------------------------------------------------------------------------------------------


def dealt(named: Mapping[str, Any], salt: str) -> dict[str, list[Any]]:
    """Things by split, by the hashes of their names, in the shares of `splits.SHARES`."""
    names = sorted(named, key=lambda name: _hash(salt, name))
    found, start, total = {}, 0, sum(SHARES.values())
    for number, split in enumerate(SPLITS):
        upto = round(len(names) * sum(list(SHARES.values())[: number + 1]) / total)
        found[split], start = [named[name] for name in names[start:upto]], upto
    return found


def _hash(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
