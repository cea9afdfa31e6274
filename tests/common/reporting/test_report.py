import itertools
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.reporting.report import (
    DARK_TOKENS,
    LIGHT_TOKENS,
    MAX_CURVE_POINTS,
    MAX_TOKENS_WITH_FIGURES,
    TOKEN_LEVELS,
    Fact,
    Panel,
    PointsPanel,
    Report,
    TokenRewards,
    curves_from_metrics,
    spread,
    visible_text,
)

pytestmark = pytest.mark.charts

HOSTILE = (
    "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} "
    "${x} &lt; $\\frac{1}$ \0\x1b\x85 \u202etxet\u202c عربي שלום \udc80 \ufeff\n\ttab"
)
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), "")


class Page(HTMLParser):
    """What a browser makes of the page, as far as these tests ask: elements, attributes and the text of each."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self._open: list[dict] = []
        self.feed(html)
        self.close()
        assert self._open == [], "an element is left open"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "attributes": dict(attributes), "text": "", "parents": [e["tag"] for e in self._open]}
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def find(self, tag, css_class=None):
        return [
            e
            for e in self.elements
            if e["tag"] == tag and (css_class is None or css_class in (e["attributes"].get("class") or "").split())
        ]

    def shape(self):
        """How often each element occurs, without the marks of characters that do not print."""
        marks = ("control", "blank")
        return Counter(e["tag"] for e in self.elements if e["attributes"].get("class") not in marks)


def full_report(text="text"):
    """A report with every kind of section, `text` in every place that takes one."""
    report = Report(text, text, {text: Fact(text, text), "accuracy": 0.894}, [text])
    panel = Panel(text, text, {text: [(0, 1.0), (1, 2.0)], "b": [(0, 2.0), (1, 1.0)]}, [0.5], text, text)
    report.add_curves(text, [panel], text)
    report.add_points(text, [PointsPanel(text, text, {text: [1.0, 2.0], "b": [3.0]}, text)], text)
    report.add_table(text, [{text: text, "accuracy": 0.5}, {text: None, "accuracy": float("nan")}], text)
    tokens = TokenRewards([text, " great"], [0.1, 0.9], text, {text: text, "accuracy": 0.5})
    long = TokenRewards([text] * (MAX_TOKENS_WITH_FIGURES + 1), [0.5] * (MAX_TOKENS_WITH_FIGURES + 1))
    report.add_token_rewards(text, [tokens, long], (0.0, 1.0), note=text)
    report.add_details(text, {text: text, "seed": 0}, text)
    return report


class TestPage:
    def test_text_is_never_mark_up(self):
        hostile, harmless = Page(full_report(HOSTILE).html()), Page(full_report().html())
        assert hostile.shape() == harmless.shape()
        assert not hostile.find("script") and not hostile.find("img")
        assert not [name for e in hostile.elements for name in e["attributes"] if name.startswith("on")]
        assert "{{ 7*7 }} {% raw %}" in hostile.find("h1")[0]["text"]

    @settings(max_examples=25, deadline=None)
    @given(st.text(max_size=40))
    def test_no_text_changes_the_elements_of_the_page(self, text):
        report = Report(text, text or "subtitle", {text: text})
        report.add_table(text, [{text: text}], text or "note")
        report.add_token_rewards(text, [TokenRewards([text], [1.0], text or "caption", {text: text})])
        assert Page(report.html()).shape() == Page(self._same_with_a_word().html()).shape()

    def _same_with_a_word(self):
        report = Report("w", "w", {"w": "w"})
        report.add_table("w", [{"w": "w"}], "w")
        report.add_token_rewards("w", [TokenRewards(["w"], [1.0], "w", {"w": "w"})])
        return report

    def test_asks_the_network_for_nothing(self):
        html = full_report().html()
        assert "//" not in re.sub(r"<!--.*?-->", "", html, flags=re.S)
        assert "@import" not in html
        assert set(re.findall(r"url\((.)", html)) <= {"#"}
        for element in Page(html).elements:
            for name in ("src", "href", "action", "data", "poster"):
                assert (element["attributes"].get(name) or "#")[0] == "#" or element["attributes"][name] == "data:,"
        assert "default-src 'none'" in html

    def test_names_in_the_page_are_unique_and_all_references_meet_one(self):
        report = full_report()
        report.add_curves("again", [Panel("p", "y", {"a": [(0, 1.0), (1, 2.0)]}, [0.5])] * 2)
        html = report.html()
        names = Counter(re.findall(r'\bid="([^"]+)"', html))
        assert names and max(names.values()) == 1
        references = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
        assert references and references <= set(names)

    def test_equal_content_gives_an_equal_page(self):
        assert full_report().html() == full_report().html()

    def test_is_written_whole_or_not_at_all(self, tmp_path):
        full_report().write(tmp_path / "report.html")
        assert (tmp_path / "report.html").read_text().endswith("</html>")
        with pytest.raises(UserError, match="cannot write"):
            full_report().write(tmp_path / "missing" / "report.html")


class TestVisibleText:
    @pytest.mark.parametrize(
        ("text", "seen"),
        [("a\nb", "a↵\nb"), ("\0", "␀"), ("\x7f", "U+007F"), ("\u202e", "U+202E"), ("\ufeff", "U+FEFF"), ("é", "é")],
    )
    def test_what_does_not_print_has_a_stand_in(self, text, seen):
        assert re.sub("<[^>]*>", "", visible_text(text)) == seen

    def test_the_joiners_of_persian_and_emoji_stay(self):
        text = "می\u200cخواهم 👩\u200d🔬"  # noqa: RUF001 - Persian letters
        assert visible_text(text) == text


class TestTable:
    def rows(self, rows):
        report = Report("t")
        report.add_table("h", rows)
        page = Page(report.html())
        columns = len(page.find("th"))
        cells = [(e["text"], "number" in (e["attributes"].get("class") or "")) for e in page.find("td")]
        return [cells[i : i + columns] for i in range(0, len(cells), columns)]

    def test_numbers_stand_to_the_right_with_one_number_of_decimals(self):
        assert self.rows([{"a": 0.5, "n": 16}, {"a": 0.8125, "n": 2024}]) == [
            [("0.500", True), ("16", True)],
            [("0.812", True), ("2024", True)],
        ]

    def test_tiny_numbers_keep_their_digits(self):
        assert self.rows([{"lr": 5e-5}, {"lr": None}]) == [[("5e-05", True)], [("\u2013", True)]]

    def test_what_is_missing_or_not_finite_is_a_dash(self):
        assert self.rows([{"a": 1.5}, {"b": "x"}, {"a": float("nan"), "b": None}]) == [
            [("1.500", True), ("\u2013", False)],
            [("\u2013", True), ("x", False)],
            [("\u2013", True), ("\u2013", False)],
        ]

    def test_every_column_sorts_both_ways_with_what_is_missing_last(self):
        report = Report("t")
        rows = [(9.5, "91.2 (0.4)", "b"), (None, "9.7", "A"), (10.5, "", "c"), (9.5, "30.0", "d")]
        report.add_table("h", [dict(zip("abc", row, strict=True)) for row in rows])
        page = Page(report.html())
        styles = [e["attributes"]["style"] for e in page.find("tr") if "style" in e["attributes"]]
        places = [dict(part.split(":") for part in style.strip(";").split(";")) for style in styles]

        def order(name):
            return sorted(range(4), key=lambda i: int(places[i][name]))

        assert order("--u0") == [0, 3, 2, 1] and order("--d0") == [2, 0, 3, 1]
        assert order("--u1") == [1, 3, 0, 2] and order("--d1") == [0, 3, 1, 2]
        assert order("--u2") == [1, 0, 2, 3] and order("--d2") == [3, 2, 0, 1]
        choices = [e["attributes"].get("class") for e in page.find("input")]
        assert choices == ["up-0", "down-0", "up-1", "down-1", "up-2", "down-2", None]
        style = report.html().partition("</style>")[0]
        assert ".up-2:checked) tbody tr { order: var(--u2); }" in style and "--u3" not in style

    def test_is_copied_with_all_digits_and_no_cell_is_a_formula(self):
        report = Report("t")
        rows = [{"x": 1 / 3, "t": "=1+1"}, {"x": -2.5, "t": "</textarea>\n\ta"}, {"x": float("nan"), "t": 'say "a"'}]
        report.add_table("h", rows)
        (area,) = Page(report.html()).find("textarea")
        assert area["text"].splitlines() == [
            "",  # which a browser drops
            "x\tt",
            "0.3333333333333333\t'=1+1",
            "-2.5\t</textarea>\ufffd\ufffda",
            '\t"say ""a"""',
        ]

    def test_texts_keep_their_blanks(self):
        assert self.rows([{"prompt": "  two  blanks "}]) == [[("  two  blanks ", False)]]


class TestTokenRewards:
    def chips(self, tokens, rewards, **scale):
        report = Report("t")
        report.add_token_rewards("h", [TokenRewards(tokens, rewards)], **scale)
        return Page(report.html()).find("bdi", "chip")

    def test_each_token_carries_its_reward_on_hover_and_as_a_figure(self):
        (chip,) = self.chips([" great"], [0.731], scale=(0.0, 1.0))
        assert chip["text"] == " great"
        assert chip["attributes"]["title"] == "reward 0.7310"
        assert chip["attributes"]["data-reward"] == "0.7310"

    def test_colours_go_from_low_to_high_of_the_fixed_scale_and_stop_there(self):
        chips = self.chips(list("abcde"), [-5.0, 0.0, 0.5, 1.0, 5.0], scale=(0.0, 1.0))
        last = TOKEN_LEVELS - 1
        levels = [chip["attributes"]["class"].split()[1] for chip in chips]
        assert levels == [f"r{i}" for i in (0, 0, last // 2, last, last)]

    def test_rewards_that_are_all_but_equal_look_it_until_the_reader_stretches_the_colours(self):
        report = Report("t")
        report.add_token_rewards("h", [TokenRewards(["a", "b"], [0.50, 0.52])], scale=(0.0, 1.0))
        page = Page(report.html())
        classes = [chip["attributes"]["class"] for chip in page.find("bdi", "chip")]
        middle, last = TOKEN_LEVELS // 2, TOKEN_LEVELS - 1
        assert classes == [f"chip r{middle} t0", f"chip r{middle} t{last}"]
        choices = [(e["attributes"].get("class"), "checked" in e["attributes"]) for e in page.find("input")]
        assert choices == [(None, True), ("by-stretched", False)]
        assert [e["text"] for e in page.find("div", "of-reward")] == ["01learned token reward, all that it can be"]
        assert page.find("div", "of-stretched")[0]["text"].startswith("0.5000.520")

    def test_the_scale_is_that_of_the_sequences_unless_given(self):
        chips = self.chips(["a", "b"], [0.69315, 0.69317])
        assert [chip["attributes"]["class"] for chip in chips] == ["chip r0", f"chip r{TOKEN_LEVELS - 1}"]
        assert [chip["attributes"]["data-reward"] for chip in chips] == ["0.693150", "0.693170"]

    def test_equal_rewards_have_the_middle_colour_and_one_that_is_no_number_none(self):
        chips = self.chips(["a", "b", "c"], [0.5, 0.5, float("nan")])
        middle = f"chip r{TOKEN_LEVELS // 2}"
        assert [chip["attributes"]["class"] for chip in chips] == [middle, middle, "chip rx"]
        assert chips[2]["attributes"]["title"] == "reward \u2013"

    def test_the_reader_chooses_rewards_or_advantages_and_wrong_preferences_are_marked(self):
        report = Report("t")
        sequence = TokenRewards(["good", "bad"], [0.9, 0.1], advantages=[0.05, -0.2], preferred=[None, "b<er"])
        report.add_token_rewards("h", [sequence])
        page = Page(report.html())
        good, bad = (chip["attributes"] for chip in page.find("bdi", "chip"))
        # Advantages have a scale around 0 from -0.2 to 0.2, rewards their own.
        assert good["class"] == "chip r14 a9" and bad["class"] == "chip r0 a0 preferred"
        assert (bad["data-reward"], bad["data-advantage"]) == ("0.10", "-0.20")
        assert bad["title"] == "reward 0.10, advantage -0.20; the reward prefers: b<er"
        kinds = [element["attributes"]["type"] for element in page.find("input")]
        assert kinds == ["radio", "radio"]
        plain = Report("t")
        plain.add_token_rewards("h", [TokenRewards(["good"], [0.9])])
        assert not Page(plain.html()).find("input") and "the reward prefers" not in plain.html()
        with pytest.raises(ValueError, match="advantages: 1 of them for 2 tokens"):
            TokenRewards(["a", "b"], [0.5, 0.5], advantages=[0.1])

    def test_tokens_without_a_visible_character_are_seen(self):
        assert [chip["text"] for chip in self.chips(["", "\n", "\u200d", "\u202e", " "], [0.5] * 5)] == [
            "empty",
            "↵",
            "joiner",
            "U+202E",
            " ",
        ]

    @pytest.mark.parametrize(("tokens", "direction"), [(["a", " עברית"], "ltr"), (["1", " عربي", " a"], "rtl")])
    def test_a_sequence_runs_in_the_direction_of_its_first_letter(self, tokens, direction):
        report = Report("t")
        report.add_token_rewards("h", [TokenRewards(tokens, [0.5] * len(tokens))])
        assert Page(report.html()).find("div", "chips")[0]["attributes"]["dir"] == direction

    def test_only_long_sequences_hide_their_figures_until_asked(self):
        for length, hidden in [(MAX_TOKENS_WITH_FIGURES, False), (MAX_TOKENS_WITH_FIGURES + 1, True)]:
            report = Report("t")
            report.add_token_rewards("h", [TokenRewards(["a"] * length, [0.5] * length)])
            page = Page(report.html())
            assert bool(page.find("div", "long")) == bool(page.find("input", "figures")) == hidden

    def test_a_reward_too_few_is_an_error(self):
        with pytest.raises(ValueError, match="1 of them for 2 tokens"):
            TokenRewards(["a", "b"], [0.5])

    def test_no_sequences_make_a_section_all_the_same(self):
        report = Report("t")
        report.add_token_rewards("nothing yet", [])
        assert Page(report.html()).find("h2")[0]["text"] == "nothing yet"

    @pytest.mark.parametrize("palette", [LIGHT_TOKENS, DARK_TOKENS])
    def test_the_text_can_be_read_on_every_colour(self, palette):
        def luminance(color):  # WCAG 2.2, relative luminance
            channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        levels = palette.levels()
        assert len(levels) == TOKEN_LEVELS
        assert (levels[0], levels[-1]) == (palette.low, palette.high)
        for color in levels:
            dark, light = sorted([luminance(color), luminance(palette.text)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5


class TestCurves:
    def test_a_panel_is_a_chart_with_its_last_values(self):
        report = Report("t")
        report.add_curves("h", [Panel("Loss", "nats", {"train": [(0, 2.0), (5, 1.25)], "dev": [(5, 1.5)]})])
        page = Page(report.html())
        (svg,) = page.find("svg")
        assert svg["attributes"]["role"] == "img"
        assert svg["attributes"]["aria-label"].startswith("Loss: train from 2 to 1.25, lowest 1.25, highest 2; dev")
        assert [e["text"].split() for e in page.find("li")] == [["train", "1.25"], ["dev", "1.5"]]

    def test_every_point_tells_its_value_under_the_pointer(self):
        report = Report("t")
        series = {"train": [(0, 2.0), (5, 1.25)], "dev": [(5, 1.5), (10, 0.5)]}
        report.add_curves("h", [Panel("Loss", "nats", series, xlabel="policy step")])
        page = Page(report.html())
        told = [e["text"] for e in page.find("title") if "rect" in e["parents"]]
        assert told == ["policy step 0: train 2", "policy step 5: train 1.25, dev 1.5", "policy step 10: dev 0.5"]
        strips = [{k: float(v) for k, v in e["attributes"].items() if k != "class"} for e in page.find("rect", "tell")]
        for left, right in itertools.pairwise(strips):
            assert left["x"] + left["width"] == pytest.approx(right["x"], abs=0.11)
        # matplotlib's own marks of the three places lie within their strips.
        marks = sorted(
            {float(e["attributes"]["x"]) for e in page.find("use") if "var(--series" in str(e["attributes"])}
        )
        assert len(marks) == 3
        for mark, strip in zip(marks, strips, strict=True):
            assert strip["x"] <= mark <= strip["x"] + strip["width"]

    def test_points_that_are_not_finite_and_panels_without_a_point_are_left_out(self):
        report = Report("t")
        nan = float("nan")
        report.add_curves("kept", [Panel("a", "", {"x": [(0, nan), (1, 3.0)]}), Panel("b", "", {"x": [(0, nan)]})])
        report.add_curves("left out", [Panel("c", "", {})])
        page = Page(report.html())
        assert [e["text"] for e in page.find("h3")] == ["a"]
        assert [e["text"] for e in page.find("h2")] == ["kept"]

    def test_colours_are_those_of_the_page(self):
        report = Report("t")
        report.add_curves("h", [Panel("a", "", {str(i): [(0, i), (1, i)] for i in range(8)}, [0.5])])
        drawn = "".join(
            str(e["attributes"].get("style")) for e in Page(report.html()).elements if "svg" in e["parents"]
        )
        assert re.findall(r"#[0-9a-f]{6}", drawn) == []
        assert "var(--series-0)" in drawn and "var(--series-5)" in drawn and "var(--round)" in drawn

    def test_a_long_run_stays_a_small_page(self):
        report = Report("t")
        report.add_curves("h", [Panel("a", "", {"x": [(i, (i * 7919) % 1000) for i in range(100_000)]})])
        assert len(report.html()) < 60_000 + 100 * MAX_CURVE_POINTS


class TestPoints:
    def test_every_value_is_a_point_and_the_mean_a_bar(self):
        report = Report("t")
        report.add_points("h", [PointsPanel("Accuracy", "%", {"max": [90.0, 92.0, 97.0], "sum": [80.0]})])
        page = Page(report.html())
        (svg,) = page.find("svg")
        assert svg["attributes"]["aria-label"] == "Accuracy: max mean 93 of 90, 92, 97; sum mean 80 of 80"
        assert [e["text"].split() for e in page.find("li")] == [["max", "93"], ["sum", "80"]]
        drawn = [
            str(e["attributes"].get("style")) for e in page.elements if e["tag"] == "use" and "svg" in e["parents"]
        ]
        assert sum("var(--series-0)" in style for style in drawn) == 3
        assert sum("var(--series-1)" in style for style in drawn) == 1
        assert svg["text"].index("max") < svg["text"].index("n = 3") < svg["text"].index("sum")  # on the axis
        assert [e["text"] for e in page.find("title") if "circle" in e["parents"]] == [
            "max: 90",
            "max: 92",
            "max: 97",
            "sum: 80",
        ]

    def test_points_of_one_group_stand_apart_within_their_place(self):
        for count in (1, 2, 5, 50):
            places = spread(3, count)
            assert len(set(places)) == count
            assert sum(places) / count == pytest.approx(3)
            assert max(abs(x - 3) for x in places) < 0.3

    def test_what_is_not_finite_and_what_is_empty_is_left_out(self):
        report = Report("t")
        nan = float("nan")
        report.add_points(
            "kept", [PointsPanel("a", "", {"x": [nan, 3.0], "y": [nan]}), PointsPanel("b", "", {"x": []})]
        )
        report.add_points("left out", [PointsPanel("c", "", {})])
        page = Page(report.html())
        assert [e["text"] for e in page.find("h3")] == ["a"]
        assert [e["text"] for e in page.find("h2")] == ["kept"]
        assert [e["text"].split() for e in page.find("li")] == [["x", "3"]]


class TestCurvesFromMetrics:
    @staticmethod
    def event(phase, round, step, **values):
        return {"phase": phase, "round": round, "step": step, "seconds": 0.0, **values}

    def test_reward_metrics_stand_at_the_steps_of_all_rounds_and_policy_metrics_at_theirs(self):
        events = [
            self.event("reward", 0, 1, loss=4.0),
            self.event("reward", 0, 10, loss=3.0),
            self.event("policy", 0, 1, entropy=9.0),
            self.event("policy", 0, 50, entropy=8.0),
            self.event("reward", 1, 1, loss=2.0),
            self.event("reward", 1, 20, loss=1.0),
            self.event("policy", 1, 51, entropy=7.0),
            self.event("reward", 2, 5, loss=0.5),
        ]
        loss, entropy = curves_from_metrics(events, ["loss", "entropy"])
        assert loss.series == {"loss": [(1, 4.0), (10, 3.0), (11, 2.0), (30, 1.0), (35, 0.5)]}
        assert list(loss.vlines) == [10, 30]
        assert loss.xlabel == "reward step"
        assert entropy.series == {"entropy": [(1, 9.0), (50, 8.0), (51, 7.0)]}
        assert list(entropy.vlines) == [51]
        assert entropy.xlabel == "policy step"

    def test_several_metrics_share_a_panel_and_unknown_ones_make_none(self):
        events = [self.event("eval", 0, 5, train=1.0, dev=None), self.event("eval", 0, 10, train=2.0, dev=3.0)]
        (panel,) = curves_from_metrics(events, [("train", "dev"), "nothing"], titles={"train": "Scores"})
        assert panel.title == "Scores"
        assert panel.series == {"train": [(5, 1.0), (10, 2.0)], "dev": [(10, 3.0)]}

    def test_a_metric_of_both_phases_has_a_panel_for_each(self):
        events = [self.event("reward", 0, 5, tokens=1.0), self.event("policy", 0, 10, tokens=2.0)]
        assert [panel.xlabel for panel in curves_from_metrics(events, ["tokens"])] == ["reward step", "policy step"]

    def test_titles_are_made_from_the_names(self):
        events = [self.event("reward", 0, 1, **{"reward/rank_accuracy": 0.5})]
        assert curves_from_metrics(events, ["reward/rank_accuracy"])[0].title == "Reward rank accuracy"


def test_short_words_stay_on_one_line_and_long_texts_do_not(tmp_path):
    report = Report("Title")
    report.add_table("Table", [{"kind": "median", "text": "a summary of many words"}, {"kind": "best", "text": "x"}])
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<td class="short"><bdi>median</bdi>' in page
    assert "<td><bdi>x</bdi>" in page  # a column is of one kind


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
class TestInChromium:
    def open(self, folder, html):
        (folder / "report.html").write_text(html, encoding="utf-8")
        return subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--dump-dom"),
                (folder / "report.html").as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )

    def console(self, run):
        return [line for line in run.stderr.splitlines() if ":CONSOLE" in line]

    def test_the_elements_are_there_and_the_console_is_silent(self, tmp_path):
        run = self.open(tmp_path, full_report(HOSTILE).html())
        assert self.console(run) == []
        for part in ("<svg", 'class="facts"', 'class="tokens sorted"', 'class="chip r', "<details", "&lt;script&gt;"):
            assert part in run.stdout
        assert "<script" not in run.stdout

    def test_a_request_to_the_network_or_a_script_would_be_seen(self, tmp_path):
        for offence in ('<img src="http://127.0.0.1:9/x.png">', "<script>document.title = 1</script>"):
            html = full_report().html().replace("</main>", offence + "</main>")
            assert self.console(self.open(tmp_path, html)), offence
