import dataclasses
from dataclasses import dataclass

import pytest

from common.errors import UserError, UserErrors
from common.training.settings import TaskSettings, setting


@dataclass(frozen=True)
class Options:
    name: str = setting()
    count: int = setting(minimum=1, maximum=10)
    rate: float = setting(above=0)
    share: float = setting(minimum=0, maximum=1)
    mode: str = setting(choices=("token", "sequence"))
    clip: bool = setting()
    limit: int | None = setting(minimum=1)
    folder: str | None = setting()
    tags: list[str] = setting()


@dataclass(frozen=True)
class Other:
    name: str = setting()
    seed: int = setting()


@dataclass(frozen=True)
class Settings(TaskSettings):
    one: Options
    other: Other

    def check(self):
        if self.one.count == self.other.seed:
            raise UserError("count and seed are equal")


GOOD = {
    "name": "x", "count": 3, "rate": 0.5, "share": 0.0, "mode": "token", "clip": True, "limit": None, "folder": None,
    "tags": [], "seed": 0,
}  # fmt: skip


def build(**values):
    return Settings.from_mapping(GOOD | values).one


def test_good_values_are_taken_as_they_are():
    options = build(limit=4, folder="a/b", tags=["p", "q"])
    assert options == Options("x", 3, 0.5, 0.0, "token", True, 4, "a/b", ["p", "q"])


def test_whole_numbers_do_for_numbers_and_numbers_for_text():
    options = build(rate=2, name=2024, folder=1.5)
    assert isinstance(options.rate, float)
    assert options.rate == 2.0
    assert (options.name, options.folder) == ("2024", "1.5")


def test_words_of_a_command_line_are_converted():
    options = build(rate="5e-5", count="3", clip="False", limit="4", name="5e-5", share="0")
    assert (options.rate, options.count, options.clip, options.limit) == (5e-5, 3, False, 4)
    assert (options.name, options.share) == ("5e-5", 0.0)
    assert build(clip=0).clip is build(clip="0").clip is False


@pytest.mark.parametrize("text", ["${name}", r"a \${b} c", r"\\${", "$x {y}", "${", "\\", r"\\\${oc.env:HOME}\\"])
def test_a_text_is_taken_as_it_is_typed(text):
    options = build(folder=text, tags=["a", text])
    assert (options.folder, options.tags) == (text, ["a", text])


@pytest.mark.parametrize("text", ["a\x00", "\x1b[31m", "\u202eevil", "\ud800", "\x9b2J"])
def test_what_terminals_obey_or_no_file_can_hold_is_no_text(text):
    for option in ({"folder": text}, {"name": f"a {text}"}, {"tags": ["a", text]}):
        with pytest.raises(UserError, match="which is no character of a text") as error:
            build(**option)
        assert str(error.value).isprintable()
    assert build(name="line\n\ttab").name == "line\n\ttab"


def test_an_option_of_two_groups_has_one_value_and_one_name():
    settings = Settings.from_mapping(GOOD | {"name": "y", "seed": 4})
    assert (settings.one.name, settings.other) == ("y", Other("y", 4))
    assert settings.options() == GOOD | {"name": "y", "seed": 4}
    assert Settings.kinds()["limit"] == (int, True)
    with pytest.raises(UserError, match="name: a value is needed"):  # once
        Settings.from_mapping(GOOD | {"name": None})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.other.__setattr__("seed", 5)


def test_changed_settings_are_checked_again():
    settings = Settings.from_mapping(GOOD)
    assert settings.replaced(seed=7) == Settings.from_mapping(GOOD | {"seed": 7})
    with pytest.raises(UserError, match="count and seed are equal"):
        settings.replaced(seed=3)
    with pytest.raises(UserErrors) as caught:
        settings.replaced(count=0, rate="x", shar=1)
    assert len(caught.value.messages) == 3


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown option 'shar'; did you mean 'share'?"):
        build(shar=1)


def test_a_missing_key_is_named():
    values = dict(GOOD)
    del values["rate"]
    with pytest.raises(UserError, match="option 'rate' is not set"):
        Settings.from_mapping(values)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("count", 0, "count: 0 is out of range; it must be at least 1"),
        ("count", 11, "count: 11 is out of range; it must be at most 10"),
        ("rate", 0, "rate: 0.0 is out of range; it must be more than 0"),
        ("share", 1.5, "share: 1.5 is out of range; it must be at most 1"),
        ("limit", 0, "limit: 0 is out of range; it must be at least 1"),
        ("count", 2.5, "count: 2.5 is not a whole number"),
        ("count", "many", "count: 'many' is not a whole number"),
        ("count", True, "count: True is not a whole number"),
        ("rate", "fast", "rate: 'fast' is not a number"),
        ("rate", True, "rate: True is not a number"),
        ("rate", float("nan"), "rate: nan is not a finite number"),
        ("rate", float("inf"), "rate: inf is not a finite number"),
        ("clip", "maybe", "clip: 'maybe' is not true or false"),
        ("clip", 2, r"clip: 2 is not true or false \(or 1 or 0\)"),
        ("clip", "2", r"clip: '2' is not true or false"),
        ("clip", "yes", r"clip: 'yes' is not true or false"),
        ("rate", 10**400, "rate: 1000.* is not a number"),
        ("clip", None, "clip: a value is needed"),
        ("name", None, "name: a value is needed"),
        ("name", ["x"], r"name: \['x'\] is not text"),
        ("name", True, "name: True is not text"),
        ("mode", "tokn", "mode: 'tokn' is not one of token, sequence; did you mean 'token'?"),
        ("tags", "p", "tags: 'p' is not a list"),
        ("tags", [None], r"tags: \[None\] is not a list"),
        ("limit", "x", "limit: 'x' is not a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_an_error_that_says_what_is_allowed(key, value, words):
    with pytest.raises(UserError, match=words):
        build(**{key: value})
