import pytest
import torch

from common.language_models.sampling import draw_tokens

LOGITS = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
EVEN = (torch.arange(10_000) + 0.5) / 10_000


def shares(logits=LOGITS, **options):
    """How often each token is drawn where the uniform numbers are spread evenly."""
    drawn = draw_tokens(logits.expand(len(EVEN), -1), EVEN, **options)
    return (torch.bincount(drawn, minlength=logits.shape[-1]) / len(EVEN)).tolist()


def test_one_number_decides_one_token():
    numbers = torch.tensor([0.0, 0.09, 0.11, 0.59, 0.61, 0.95])
    assert draw_tokens(LOGITS.expand(6, -1), numbers).tolist() == [0, 0, 1, 1, 2, 3]
    # Of the two most probable, the most probable first, 5 / 8 of the range is token 1.
    assert draw_tokens(LOGITS.expand(4, -1), torch.tensor([0.0, 0.62, 0.63, 0.999]), 2).tolist() == [1, 1, 2, 2]


def test_every_token_is_drawn_as_often_as_it_is_probable():
    assert shares() == pytest.approx([0.1, 0.5, 0.3, 0.1], abs=2e-4)
    assert shares(top_k=2) == pytest.approx([0, 0.625, 0.375, 0], abs=2e-4)
    squared = [0.01, 0.25, 0.09, 0.01]
    assert shares(temperature=0.5) == pytest.approx([p / sum(squared) for p in squared], abs=2e-4)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    assert shares(top_p=0.45) == [0, 1, 0, 0]
    assert shares(top_p=0.7) == pytest.approx([0, 0.625, 0.375, 0], abs=2e-4)
    assert sum(share > 0 for share in shares(top_p=0.85)) == 3
    assert shares(top_k=2, top_p=0.99) == pytest.approx([0, 0.625, 0.375, 0], abs=2e-4)
    assert shares(top_k=2, top_p=0.6) == [0, 1, 0, 0]  # 5 / 8 of what top_k leaves


def test_top_k_keeps_exactly_k_also_among_equal_logits_and_more_than_all_is_all():
    assert sorted(shares(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]), top_k=2)) == [0, 0, 0, 0.5, 0.5]
    assert shares(top_k=9) == shares()


def test_a_token_of_no_probability_is_never_drawn():
    least = torch.finfo(torch.float32).min
    logits = torch.tensor([[least, 0.3, -0.4, -torch.inf, 0.1, least]])
    edges = torch.tensor([0.0, 1 - 2**-24])
    for seed in range(200):  # sums round differently
        noise = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed))
        assert set(draw_tokens((logits + noise).expand(2, -1), edges).tolist()) <= {1, 2, 4}
    assert draw_tokens(LOGITS, edges[1:], temperature=0.01).tolist() == [1]


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = torch.zeros(1, 5000, dtype=torch.bfloat16)  # in bfloat16 a cumulative sum would stop growing
    assert draw_tokens(logits, torch.tensor([0.9])).tolist() == [4500]
