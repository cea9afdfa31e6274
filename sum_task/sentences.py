"""Sentences and words of a text by fixed rules: nothing to download, the same on every machine.

The published figures come from nltk's Punkt model, which is a download of its own. The rules here follow how that model
decides on English news: a full stop ends a sentence unless it belongs to an abbreviation, and after an abbreviation
only a word that usually opens a sentence begins a new one.
"""

import re
from functools import cache, lru_cache
from itertools import pairwise

from nltk.tokenize import NLTKWordTokenizer

_CLOSERS = "\"')]}>*\u201d\u2019\xbb"
_OPENERS = "\"'([{<*`\u201c\u2018\xab"
_WORD = re.compile(r"\S+")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+")
_NOT_LETTERS = re.compile(r"\W")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words(
    "adm ave bros capt cmdr co col corp cpl cos dr etc ft gen gov hon inc jr lt ltd maj messrs mr mrs ms mt pres prof "
    "rep reps rev sen sens sgt sr st supt vs jan feb aug sept sep oct nov dec mon tues wed thurs fri ala ariz calif "
    "colo conn fla ga ill kan ky mass mich minn mo nev okla ore pa tenn tex va vt wash wis"
)
_CONTRACTIONS = _words("cannot gimme gonna gotta lemme wanna")
_BEFORE_NUMBERS = _words("art fig no nos pp vol")
_OPENING_WORDS = _words(
    "a about according after all although among an and another any as at because before both but by despite during "
    "each earlier even every for from had has have he her here his how however i if in indeed instead is it its last "
    "later many meanwhile more moreover most much my nevertheless no nor not now of on once one only or other our "
    "police several she similarly since so some such that the their then there these they this those though through "
    "thus to two under until was we were what when where which while who why with yet you your"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the blanks around them. A line break always ends a sentence."""
    sentences = []
    for line in text.split("\n"):
        words = list(_WORD.finditer(line))
        start = 0
        for word, following in pairwise(words):
            if _ends_sentence(word.group(), following.group()):
                sentences.append(line[start : word.end()].strip())
                start = following.start()
        if words:
            sentences.append(line[start:].strip())
    return sentences


def lead(text: str, count: int) -> str:
    """The first `count` sentences of a text, one a line."""
    return "\n".join(split_sentences(text)[:count])


def word_tokens(text: str) -> list[str]:
    """The words and punctuation marks of a text: what nltk's ``word_tokenize`` makes of each of its sentences.

    Blanks of any kind count as one space.
    """
    return [token for sentence in split_sentences(text) for token in _sentence_tokens(sentence)]


def _sentence_tokens(sentence: str) -> list[str]:
    """nltk's tokens of a sentence, those of each stretch between blanks remembered.

    nltk's rules look past a blank in one case only: a final full stop is split off also where lone closing quotes and
    brackets follow it. These are therefore kept together with the word before them.
    """
    words = sentence.split()
    last = len(words) - 1
    while last > 0 and not words[last].strip(_CLOSERS):
        last -= 1
    tokens: list[str] = []
    for place, word in enumerate(words[:last]):
        tokens += _tokens_inside(word, place == 0)
    tokens += _tokens_at_end(" ".join(words[last:]), last <= 0)
    return tokens


@lru_cache(maxsize=2**17)
def _tokens_inside(word: str, is_first: bool) -> tuple[str, ...]:
    """Tokens of a word that others follow; a stand-in takes the place of its neighbours."""
    if _is_plain(word):
        return (word,)
    if word.endswith(",") and _is_plain(word[:-1]):
        return word[:-1], ","
    tokens = _word_tokenizer().tokenize(f"{word} x" if is_first else f"x {word} x")
    return tuple(tokens[:-1] if is_first else tokens[1:-1])


@lru_cache(maxsize=2**15)
def _tokens_at_end(words: str, is_first: bool) -> tuple[str, ...]:
    """Tokens of the end of a sentence."""
    if words.endswith(".") and _is_plain(words[:-1]):
        return words[:-1], "."
    tokenizer = _word_tokenizer()
    return tuple(tokenizer.tokenize(words) if is_first else tokenizer.tokenize(f"x {words}")[1:])


def _is_plain(word: str) -> bool:
    """Whether none of nltk's thirty expressions, which take long to try, concerns this word."""
    return word.isascii() and word.isalnum() and word.lower() not in _CONTRACTIONS


@cache
def _word_tokenizer() -> NLTKWordTokenizer:
    return NLTKWordTokenizer()


def _ends_sentence(word: str, following: str) -> bool:
    """Whether `word`, with the punctuation that touches it, is the last of its sentence."""
    core = word.rstrip(_CLOSERS)
    if core.endswith(("?", "!")):
        return True
    if not core.endswith((".", "\u2026")):
        return False
    core = core.lstrip(_OPENERS)
    name = core.removesuffix(".").rsplit("-", 1)[-1].lower()
    if name in _BEFORE_NUMBERS:
        return not following[:1].isdigit()
    if core.endswith(("..", "\u2026")) or name in _ABBREVIATIONS or _INITIALS.fullmatch(core):
        opening = _NOT_LETTERS.split(following.lstrip(_OPENERS), maxsplit=1)[0]
        return opening[:1].isupper() and opening.lower() in _OPENING_WORDS
    return True
