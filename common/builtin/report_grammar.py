"""A small seeded grammar that writes short reports with key facts among other sentences, and their summaries."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FACTS = {
    "first": [
        "anna",
        "omar",
        "lucia",
        "peter",
        "grace",
        "ivan",
        "mei",
        "tomas",
        "nora",
        "samuel",
        "clara",
        "david",
        "elif",
        "jonas",
    ],
    "last": [
        "keller",
        "haddad",
        "moreno",
        "lind",
        "okafor",
        "petrov",
        "tanaka",
        "novak",
        "brandt",
        "silva",
        "costa",
        "dahl",
        "ferris",
        "yilmaz",
    ],
    "place": [
        "arden",
        "belmont",
        "corvale",
        "dunmore",
        "eastport",
        "farley",
        "glenwood",
        "harrow",
        "ivydale",
        "kelso",
        "lindale",
        "marlow",
    ],
    "other_place": ["norwick", "oakham", "pinedale", "quarry", "redford", "stanton"],
    "day": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "number": ["two", "three", "four", "five", "six", "seven", "eight", "nine", "eleven", "twelve"],
    "other_number": ["twenty", "thirty", "forty", "fifty", "sixty"],
    "building": ["bakery", "school", "library", "hotel", "museum", "theatre", "factory"],
    "cause": ["cable", "heater", "candle", "storm", "lorry", "pump"],
    "team": ["rovers", "wanderers", "falcons", "miners", "harbour"],
    "rival": ["athletic", "united", "tigers", "rangers", "castle"],
    "prize": ["science", "poetry", "music", "chess", "cooking", "rowing"],
    "workers": ["nurses", "drivers", "teachers", "bakers", "postmen"],
    "demand": ["wages", "hours", "safety", "pensions"],
    "road": ["bridge", "tunnel", "ferry", "railway", "motorway"],
    "mood": ["mild", "dry", "wet", "windy", "cold"],
    "season": ["spring", "summer", "autumn", "winter"],
    "state": ["open", "closed", "busy", "empty"],
}


@dataclass(frozen=True)
class Story:
    """One kind of report, in patterns with slots named as in `FACTS`.

    Attributes:
        opening: sentences of which one tells what happened.
        details: sentences that are all told, in any order.
        summary: for each of the two sentences of the summary, its usual form and a rarer one.
    """

    opening: tuple[str, ...]
    details: tuple[str, ...]
    summary: tuple[tuple[str, str], tuple[str, str]]


STORIES = (
    Story(
        opening=(
            "a fire broke out in a {building} in {place} on {day}",
            "on {day} flames destroyed the {building} of {place}",
        ),
        details=("{number} people were taken to hospital", "officers believe that a {cause} started it"),
        summary=(
            (
                "a fire in a {building} in {place} hurt {number} people on {day}",
                "{number} people were hurt when a {building} burned in {place} on {day}",
            ),
            ("a {cause} was blamed", "the cause was a {cause}"),
        ),
    ),
    Story(
        opening=(
            "the {team} met the {rival} in {place} on {day}",
            "it was {day} when the {rival} came to {place} to face the {team}",
        ),
        details=(
            "the home side scored {number} times before the break",
            "{first} {last} was named player of the match",
        ),
        summary=(
            (
                "the {team} beat the {rival} with {number} goals in {place} on {day}",
                "the {rival} lost to the {team} in {place} on {day} after {number} goals",
            ),
            ("{first} {last} stood out", "the best player was {first} {last}"),
        ),
    ),
    Story(
        opening=(
            "{first} {last} was given the {prize} award in {place} on {day}",
            "the {prize} award went to {first} {last} at a dinner in {place} on {day}",
        ),
        details=("the winner has worked in the field for {number} years", "the money will pay for a new {building}"),
        summary=(
            (
                "{first} {last} won the {prize} award in {place} on {day}",
                "the {prize} award was won by {first} {last} in {place} on {day}",
            ),
            ("the money goes to a {building}", "a {building} gets the money"),
        ),
    ),
    Story(
        opening=(
            "hundreds of {workers} stopped work in {place} on {day}",
            "on {day} the {workers} of {place} stayed at home",
        ),
        details=("they ask for better {demand}", "the action may last {number} days , said {first} {last}"),
        summary=(
            (
                "{workers} in {place} began a strike for {demand} on {day}",
                "a strike for {demand} began on {day} among the {workers} of {place}",
            ),
            ("it may last {number} days", "no end is in sight for {number} days"),
        ),
    ),
    Story(
        opening=(
            "the {road} near {place} was closed on {day}",
            "travellers found the {road} at {place} shut on {day}",
        ),
        details=(
            "a {cause} had damaged it in the night",
            "repairs will take {number} weeks , engineer {first} {last} said",
        ),
        summary=(
            (
                "a {cause} closed the {road} near {place} on {day}",
                "the {road} near {place} has been shut by a {cause} since {day}",
            ),
            ("repairs take {number} weeks", "it stays shut for {number} weeks"),
        ),
    ),
    Story(
        opening=(
            "voters in {place} chose a new mayor on {day}",
            "{place} went to the polls on {day} to find a mayor",
        ),
        details=("{first} {last} came first , ahead of {number} others", "the first promise was a new {building}"),
        summary=(
            (
                "{first} {last} was elected mayor of {place} on {day}",
                "{place} elected {first} {last} as mayor on {day}",
            ),
            ("a new {building} was promised", "the plan is a new {building}"),
        ),
    ),
    Story(
        opening=(
            "a {building} opened its doors in {place} on {day}",
            "on {day} a crowd in {place} waited for the new {building} to open",
        ),
        details=("{first} {last} paid for it", "building it took {number} years because of a {cause}"),
        summary=(
            (
                "{first} {last} opened a {building} in {place} on {day}",
                "a {building} paid for by {first} {last} opened in {place} on {day}",
            ),
            ("it took {number} years", "a {cause} made it late"),
        ),
    ),
    Story(
        opening=(
            "police stopped a thief in {place} on {day}",
            "a man was arrested in {place} on {day}",
        ),
        details=(
            "he had taken {number} paintings from the {building}",
            "witness {first} {last} had seen him near the {road}",
        ),
        summary=(
            (
                "a thief who took {number} paintings was caught in {place} on {day}",
                "police in {place} caught the thief of {number} paintings on {day}",
            ),
            ("{first} {last} had seen him", "{first} {last} helped to find him"),
        ),
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


@dataclass(frozen=True)
class Report:
    """A report and the summary that restates its key facts."""

    document: str
    summary: str


def write_report(rng: random.Random, careless: bool = False) -> Report:
    """Write one report with its summary.

    A `careless` summary is what a poor writer would make of it: one or two sentences of the report as they stand, or a
    summary in which about half of the facts are wrong and that often stops halfway.
    """
    story = rng.choice(STORIES)
    facts = {slot: rng.choice(values) for slot, values in FACTS.items()}
    sentences = write_sentences(rng, story)
    summary = [usual if rng.random() < 0.75 else rarer for usual, rarer in story.summary]
    if not careless:
        return Report(join_patterns(sentences, facts), join_patterns(summary, facts))
    kind = rng.random()
    if kind < 0.4:
        return Report(join_patterns(sentences, facts), join_patterns(sentences[:1], facts))
    if kind < 0.7:
        start = rng.randrange(len(sentences))
        return Report(
            join_patterns(sentences, facts), join_patterns(sentences[start : start + rng.randint(1, 2)], facts)
        )
    told = {slot: rng.choice([value, rng.choice(FACTS[slot])]) for slot, value in facts.items()}
    return Report(join_patterns(sentences, facts), join_patterns(summary[: rng.randint(1, 2)], told))


def write_sentences(rng: random.Random, story: Story) -> list[str]:
    """The patterns of a report: an opening, the details in any order, and fillers among them."""
    sentences = [rng.choice(story.opening), *rng.sample(story.details, 2)]
    for filler in rng.sample(FILLERS, rng.randint(2, 3)):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    return sentences


def join_patterns(patterns: Sequence[str], facts: Mapping[str, str]) -> str:
    """The sentences with their facts."""
    return " ".join(f"{pattern.format_map(facts)} ." for pattern in patterns)
