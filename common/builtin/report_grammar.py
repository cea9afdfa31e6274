"""A small seeded grammar that writes short reports with key facts among other sentences, and their summaries."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FACTS = {
    "first": "anna omar lucia peter grace ivan mei tomas nora samuel".split(),
    "last": "keller haddad moreno lind okafor petrov tanaka novak brandt silva".split(),
    "place": "arden belmont corvale dunmore eastport farley glenwood harrow".split(),
    "other_place": "norwick oakham pinedale quarry redford stanton".split(),
    "day": "monday tuesday wednesday thursday friday saturday sunday".split(),
    "number": "two three four five six seven eight nine eleven twelve".split(),
    "other_number": "twenty thirty forty fifty sixty".split(),
    "building": "bakery school library hotel museum theatre factory".split(),
    "cause": "cable heater candle storm lorry pump".split(),
    "team": "rovers wanderers falcons miners harbour".split(),
    "rival": "athletic united tigers rangers castle".split(),
    "prize": "science poetry music chess cooking rowing".split(),
    "workers": "nurses drivers teachers bakers postmen".split(),
    "demand": "wages hours safety pensions".split(),
    "road": "bridge tunnel ferry railway motorway".split(),
}


@dataclass(frozen=True)
class Story:
    """One kind of report: its opening, its further facts, and the summary; all with slots named as in `FACTS`."""

    opening: tuple[str, ...]
    details: tuple[str, ...]
    summary: tuple[str, str]


STORIES = (
    Story(
        (
            "a fire broke out in a {building} in {place} on {day}",
            "on {day} flames destroyed the {building} of {place}",
        ),
        ("{number} people were taken to hospital", "officers believe that a {cause} started it"),
        ("a fire in a {building} in {place} hurt {number} people on {day}", "a {cause} was blamed"),
    ),
    Story(
        (
            "the {team} met the {rival} in {place} on {day}",
            "it was {day} when the {rival} came to {place} to face the {team}",
        ),
        ("the home side scored {number} times before the break", "{first} {last} was named player of the match"),
        ("the {team} beat the {rival} with {number} goals in {place} on {day}", "{first} {last} stood out"),
    ),
    Story(
        (
            "{first} {last} was given the {prize} award in {place} on {day}",
            "the {prize} award went to {first} {last} at a dinner in {place} on {day}",
        ),
        ("the winner has worked in the field for {number} years", "the money will pay for a new {building}"),
        ("{first} {last} won the {prize} award in {place} on {day}", "the money goes to a {building}"),
    ),
    Story(
        (
            "hundreds of {workers} stopped work in {place} on {day}",
            "on {day} the {workers} of {place} stayed at home",
        ),
        ("they ask for better {demand}", "the action may last {number} days , said {first} {last}"),
        ("{workers} in {place} began a strike for {demand} on {day}", "it may last {number} days"),
    ),
    Story(
        (
            "the {road} near {place} was closed on {day}",
            "travellers found the {road} at {place} shut on {day}",
        ),
        ("a {cause} had damaged it in the night", "repairs will take {number} weeks , engineer {first} {last} said"),
        ("a {cause} closed the {road} near {place} on {day}", "repairs take {number} weeks"),
    ),
    Story(
        (
            "voters in {place} chose a new mayor on {day}",
            "{place} went to the polls on {day} to find a mayor",
        ),
        ("{first} {last} came first , ahead of {number} others", "the first promise was a new {building}"),
        ("{first} {last} was elected mayor of {place} on {day}", "a new {building} was promised"),
    ),
    Story(
        (
            "a {building} opened its doors in {place} on {day}",
            "on {day} a crowd in {place} waited for the new {building} to open",
        ),
        ("{first} {last} paid for it", "building it took {number} years because of a {cause}"),
        ("{first} {last} opened a {building} in {place} on {day}", "it took {number} years"),
    ),
    Story(
        (
            "police stopped a thief in {place} on {day}",
            "a man was arrested in {place} on {day}",
        ),
        ("he had taken {number} paintings from the {building}", "witness {first} {last} had seen him near the {road}"),
        ("a thief who took {number} paintings was caught in {place} on {day}", "{first} {last} had seen him"),
    ),
)

FILLERS = (
    "the weather was {mood} for the season",
    "people in {other_place} had seen the same some years ago",
    "a meeting is planned for next {season}",
    "shops nearby stayed {state}",
    "about {other_number} people were there",
    "a reporter from {other_place} took notes",
    "coffee was served in the hall",
    "children played on the square",
    "it was the talk of the town",
    "nobody wanted to add anything",
    "the local paper printed {other_number} letters about it",
    "buses from {other_place} were delayed",
)
COLOUR = {
    "mood": "mild dry wet windy cold".split(),
    "season": "spring summer autumn winter".split(),
    "state": "open closed busy empty".split(),
}


@dataclass(frozen=True)
class Report:
    """A report and the summary that restates its key facts."""

    document: str
    summary: str


def draw_facts(rng: random.Random) -> dict[str, str]:
    """Draw one value for every slot."""
    return {slot: rng.choice(values) for slot, values in (FACTS | COLOUR).items()}


def write_report(rng: random.Random, careless: bool = False) -> Report:
    """Write one report with its summary.

    A `careless` summary is what a poor writer would make of it: a sentence of the report as it stands (mostly the
    first), only the first half of the summary, or a summary in which about half of the facts are wrong.
    """
    story = rng.choice(STORIES)
    facts = {slot: rng.choice(values) for slot, values in (FACTS | COLOUR).items()}
    sentences = [rng.choice(story.opening), *rng.sample(story.details, 2)]
    for filler in rng.sample(FILLERS, rng.randint(2, 3)):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    document = _join(sentences, facts)
    if not careless:
        return Report(document, _join(story.summary, facts))
    kind = rng.random()
    if kind < 0.5:
        return Report(document, _join(sentences[:1] if kind < 0.4 else [rng.choice(sentences)], facts))
    if kind < 0.7:
        return Report(document, _join(story.summary[:1], facts))
    told = {slot: rng.choice([value, rng.choice((FACTS | COLOUR)[slot])]) for slot, value in facts.items()}
    return Report(document, _join(story.summary, told))


def _join(patterns: Sequence[str], facts: Mapping[str, str]) -> str:
    return " ".join(f"{pattern.format_map(facts)} ." for pattern in patterns)
