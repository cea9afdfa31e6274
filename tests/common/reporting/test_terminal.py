import math

from common.reporting.terminal import coloured


def test_a_token_without_a_reward_has_no_colour_and_no_part_in_the_range():
    line = coloured(["a", "b", "\x1b[2J"], [1.0, 2.0, math.nan], 1.0, 2.0)
    assert line.count("\033[48;2;") == 2
    assert line.endswith("b\033[0m\\x1b[2J   (from 1.0000 to 2.0000)")
