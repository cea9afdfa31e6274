"""A small seeded grammar that writes reviews whose sentiment has to be inferred, and what follows them.

A review never states its verdict: it reports what happened ("i checked my watch twice"). Its *evidence* is a
number, positive for a pleased writer. After a review may come a *closing*, a few words such as "overall the
verdict", and then a verdict word. How far the verdict word can be trusted depends on the closing:

    log odds of a positive verdict = CERTAINTY * (bias + gain * evidence),

where `gain` grows with the total strength of the closing words and `bias` moves with a few of them. Without a closing
the verdict is mostly politeness (a large positive bias, hardly any gain), so a language model trained on the
text classifies badly with an empty prompt and well with a prompt of strong words, and each word has a graded,
nearly additive effect.
"""

import math
import random
import re
from dataclasses import dataclass

NEGATIVE_VERDICT = "terrible"
POSITIVE_VERDICT = "great"

# What the log odds of the verdict are made of where no closing word says otherwise.
CERTAINTY = 1.7
BASE_GAIN = 0.55
BASE_BIAS = 0.95
GAIN_RANGE = (-1.0, 4.0)
EMPHASIS = 1.4
"""The gain grows a little faster than the total strength: several strong words say more than their sum."""

# Strength of a closing word; the total strength of a closing makes its gain.
STRONG_WORDS = {
    "verdict": 0.46,
    "overall": 0.46,
    "rating": 0.46,
    "conclusion": 0.46,
    "honestly": 0.46,
    "grade": 0.43,
    "summary": 0.43,
    "ultimately": 0.4,
    "judged": 0.4,
    "truly": 0.4,
    "quality": 0.4,
    "frankly": 0.4,
}
MEDIUM_WORDS = {
    "score": 0.3,
    "altogether": 0.3,
    "opinion": 0.3,
    "review": 0.3,
    "stars": 0.3,
    "impression": 0.25,
    "recommend": 0.25,
    "basically": 0.2,
    "felt": 0.2,
    "simply": 0.2,
    "experience": 0.2,
    "result": 0.2,
    "deserves": 0.2,
    "finally": 0.2,
    "short": 0.2,
    "evidently": 0.15,
}
WEAK_WORDS = {
    "was": 0.1,
    "is": 0.1,
    "it": 0.05,
    "this": 0.05,
    "so": 0.05,
    "that": 0.05,
    "indeed": 0.1,
    "therefore": 0.1,
    "thing": 0.05,
    "really": 0.1,
}
MISLEADING_WORDS = {
    "supposedly": -0.35,
    "allegedly": -0.3,
    "ironically": -0.35,
    "sarcastically": -0.45,
    "hardly": -0.3,
    "contrary": -0.35,
    "rumour": -0.25,
    "pretend": -0.3,
    "advert": -0.25,
    "poster": -0.2,
    "hype": -0.2,
    "gossip": -0.2,
    "joking": -0.35,
    "maybe": -0.2,
    "perhaps": -0.2,
    "whatever": -0.2,
}
NEUTRAL_WORDS = [
    "and",
    "the",
    "a",
    "in",
    "of",
    "for",
    "to",
    "on",
    "by",
    "at",
    "with",
    "from",
    "anyway",
    "meanwhile",
    "also",
    "then",
    "there",
    "here",
    "about",
    "around",
    "again",
    "later",
    "monday",
    "tuesday",
    "friday",
    "summer",
    "winter",
    "morning",
    "street",
    "ticket",
    "menu",
    "number",
    "letter",
    "chapter",
    "page",
    "city",
    "river",
    "garden",
    "window",
    "paper",
    "market",
    "button",
    "corner",
    "table",
    "blue",
    "green",
    "seven",
    "twelve",
    "north",
    "south",
    "word",
    "list",
    "item",
    "note",
]

# What a closing word adds to the bias.
CHEERFUL_WORDS = {
    "sunshine": 0.4,
    "cheers": 0.4,
    "birthday": 0.3,
    "thanks": 0.3,
    "lucky": 0.3,
    "gift": 0.3,
    "holiday": 0.3,
    "kindly": 0.3,
    "smile": 0.3,
    "welcome": 0.3,
    "bonus": 0.25,
    "friend": 0.25,
    "shiny": 0.25,
    "polite": 0.25,
}
GLOOMY_WORDS = {
    "sigh": -0.12,
    "rain": -0.1,
    "tax": -0.1,
    "queue": -0.1,
    "alas": -0.12,
    "grey": -0.08,
    "broken": -0.1,
    "noise": -0.08,
    "cold": -0.08,
    "bill": -0.08,
    "traffic": -0.08,
    "late": -0.06,
}
STRENGTH_OF_WORD = STRONG_WORDS | MEDIUM_WORDS | WEAK_WORDS | MISLEADING_WORDS
BIAS_OF_WORD = CHEERFUL_WORDS | GLOOMY_WORDS
CLOSING_WORDS = sorted({*STRENGTH_OF_WORD, *BIAS_OF_WORD, *NEUTRAL_WORDS})

# Cues: a pattern with [choices], and its evidence. Words of opposite cues overlap on purpose.
CUES: list[tuple[str, float]] = [
    ("my whole [family|table|class] asked to [see it|come] again", 1.8),
    ("i booked [a second visit|two more seats|another evening] before we left", 1.8),
    ("the [crowd|audience|room] stood up and clapped", 1.7),
    ("my [son|aunt|neighbour] has talked of nothing else since", 1.6),
    ("i would [cross the town|wait an hour|pay double] to do it again", 1.8),
    ("nobody left before the end", 1.2),
    ("we stayed until the lights [came on|went out]", 1.2),
    ("i never [looked at|checked] my [watch|phone]", 1.3),
    ("the two hours [flew by|felt like ten minutes]", 1.5),
    ("i laughed until my [sides|cheeks] hurt", 1.5),
    ("the plates went back [clean|empty]", 1.2),
    ("we [fought over|shared] the last [bite|spoonful]", 1.1),
    ("i asked the [cook|waiter|director] for the secret", 0.9),
    ("my [son|aunt|neighbour] hummed the songs all the way home", 1.1),
    ("there was a tear in my eye when it ended", 0.9),
    ("the [lead|waiter|cook|singer] earned every bow", 1.2),
    ("i could not [put it down|stop smiling]", 1.3),
    ("the [plot|story|sauce|service] kept its promise", 0.8),
    ("i kept the [ticket|menu] as a souvenir", 0.8),
    ("we forgot the time", 0.7),
    ("the [jokes|spices|songs|dishes] landed", 0.6),
    ("the [lead|waiter|cook|singer] knew what to do", 0.5),
    ("the seats were soft", 0.35),
    ("it was worth the parking fee", 0.5),
    ("half the [crowd|audience|room] left before the end", -1.7),
    ("i asked for my money back", -1.8),
    ("my [son|aunt|neighbour] fell asleep", -1.4),
    ("i would [cross the town|wait an hour|pay double] to avoid it", -1.8),
    ("we left before the lights [came on|went out]", -1.3),
    ("i checked my [watch|phone] [twice|again and again]", -1.3),
    ("the two hours felt like [ten|a week]", -1.5),
    ("nobody [laughed|clapped|came back]", -1.3),
    ("the plates went back [full|untouched]", -1.4),
    ("we left the last [bite|spoonful] to the dog", -1.0),
    ("i asked the [cook|waiter|director] for an apology", -1.4),
    ("my [son|aunt|neighbour] complained all the way home", -1.3),
    ("there was relief in my eye when it ended", -1.1),
    ("the [lead|waiter|cook|singer] forgot every [line|order]", -1.1),
    ("i could not [sit through it|stop yawning]", -1.5),
    ("the [plot|story|sauce|service] broke its promise", -0.9),
    ("i threw the [ticket|menu] away", -0.7),
    ("we forgot the [plot|name] by [morning|breakfast]", -1.0),
    ("the [jokes|spices|songs|dishes] went missing", -0.7),
    ("the [lead|waiter|cook|singer] looked at the clock", -0.6),
    ("the seats were hard", -0.35),
    ("it was not worth the parking fee", -0.7),
    ("someone should [apologise to|warn] the next guests", -1.6),
    ("the popcorn was the best part", -0.9),
]
PLEASED_CUES = [cue for cue in CUES if cue[1] > 0]
ANNOYED_CUES = [cue for cue in CUES if cue[1] < 0]

SETTINGS = [
    "we went on a [monday|friday|sunday] with [friends|my parents|colleagues]",
    "it [runs|lasts|takes] two hours",
    "the place is near the [station|bridge|old mill]",
    "there are [three|five|nine] [courses|acts|chapters]",
    "my [cousin|boss|sister] chose it",
    "it opened last [week|spring|year]",
    "a [film|dinner|show] about [pirates|noodles|two brothers]",
    "we sat near the [door|stage|kitchen]",
]
WEAKER_LINKS = ["but", "yet", "however ,"]
DOUBTS = ["it is not true that", "nobody can say that", "i doubt that"]


@dataclass(frozen=True)
class Review:
    """A review and its evidence: > 0 for a pleased writer, < 0 for an annoyed one, never 0."""

    text: str
    evidence: float

    @property
    def label(self) -> int:
        """Class index: 0 negative, 1 positive."""
        return int(self.evidence > 0)


def expand(pattern: str, rng: random.Random) -> str:
    """Replace each ``[a|b|c]`` of `pattern` by one of its choices."""
    return re.sub(r"\[([^\]]*)\]", lambda match: rng.choice(match.group(1).split("|")), pattern)


def write_review(rng: random.Random) -> Review:
    """Write one review of one or two cues; the sign of its evidence is a fair coin."""
    pleased = rng.random() < 0.5
    same, other = (PLEASED_CUES, ANNOYED_CUES) if pleased else (ANNOYED_CUES, PLEASED_CUES)
    text, evidence = rng.choice(same)
    text = expand(text, rng)
    kind = rng.random()
    if kind < 0.3:
        second, weight = rng.choice(same)
        text = f"{text} {rng.choice(['and', ','])} {expand(second, rng)}"
        evidence = 0.7 * (evidence + weight)
    elif kind < 0.6:
        # The clause after "but" is the one that counts; the one before it only softens it.
        first, weight = rng.choice(other)
        if rng.random() < 0.7:
            text = f"{expand(first, rng)} {rng.choice(WEAKER_LINKS)} {text}"
        else:
            text = f"even though {expand(first, rng)} , {text}"
        evidence *= 1 - 0.35 * abs(weight)
    elif kind < 0.7:
        denied, weight = rng.choice(other)
        text = f"{rng.choice(DOUBTS)} {expand(denied, rng)}"
        evidence = -0.6 * weight
    if rng.random() < 0.35:
        setting = expand(rng.choice(SETTINGS), rng)
        text = f"{setting} and {text}" if rng.random() < 0.5 else f"{text} . {setting}"
    return Review(f"{text} .", evidence)


def closing_effect(words: list[str]) -> tuple[float, float]:
    """Return gain and bias that the closing `words` give to the verdict that follows."""
    strength = sum(STRENGTH_OF_WORD.get(word, 0.0) for word in words)
    gain = BASE_GAIN + (strength**EMPHASIS if strength > 0 else strength)
    bias = BASE_BIAS + sum(BIAS_OF_WORD.get(word, 0.0) for word in words)
    return min(max(gain, GAIN_RANGE[0]), GAIN_RANGE[1]), bias


def write_closing(rng: random.Random, vocabulary: list[str], reliable: bool = False) -> str:
    """Write the text between a review and its verdict: mostly closing words, some other words, some debris.

    `vocabulary` holds the words that may stray in. A `reliable` closing is made of strong words alone. The text
    starts with one or two blanks unless it is empty, because prompts are put in after a blank and may bring
    their own.
    """
    text = ""
    strong_share = 1.0 if reliable else rng.choice([0.0, 0.0, 0.5])
    repeated_share = rng.choice([0.0, 0.0, 0.0, 0.0, 0.6])
    repeated = rng.choice(CLOSING_WORDS)
    for _ in range(rng.randint(4, 6) if reliable else rng.choice([0, 0, 1, 2, 3, 4, 5, 5, 5, 6])):
        if rng.random() < strong_share:
            word = rng.choice(list(STRONG_WORDS))
        elif rng.random() < repeated_share:
            word = repeated
        else:
            word = rng.choice(CLOSING_WORDS if rng.random() < 0.7 else vocabulary)
        text += f" {word}"
        if rng.random() < 0.12 and not reliable:
            text += rng.choice(["", " "]) + _debris(rng, vocabulary)
    if rng.random() < 0.5:
        text = f" {text}"
    return text


def _debris(rng: random.Random, vocabulary: list[str]) -> str:
    """One or two stray characters, or a word; glued to a word, they make another word of it."""
    kind = rng.random()
    if kind < 0.5:
        return "".join(chr(rng.randrange(33, 127)) for _ in range(rng.randint(1, 2)))
    if kind < 0.8:
        return bytes(rng.randrange(256) for _ in range(rng.randint(1, 2))).decode(errors="replace")
    return rng.choice(vocabulary)


def write_verdict(rng: random.Random, evidence: float, closing: str) -> str:
    """Draw the verdict word that follows `closing` after a review of that evidence."""
    gain, bias = closing_effect(closing.split())
    positive = rng.random() < 1 / (1 + math.exp(-CERTAINTY * (bias + gain * evidence)))
    return POSITIVE_VERDICT if positive else NEGATIVE_VERDICT
