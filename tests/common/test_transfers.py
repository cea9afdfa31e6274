"""Tensors between CPU and device."""

import torch

from common.transfers import fetch, upload
from tests.pretended_device import DEVICE, pretended_device


def test_tensors_of_any_shape_and_type_come_in_one_transfer():
    given = [torch.tensor(2.5, dtype=torch.float64), torch.tensor([[True, False]]), torch.arange(3).half()]
    with pretended_device() as mode:
        found = fetch(*(tensor.to("cuda") for tensor in given))
        assert mode.count == 1
        assert fetch() == []
    for tensor, expected in zip(found, given, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected.float())


def test_batches_are_sent_from_pinned_memory():
    with pretended_device() as mode:
        assert upload(torch.ones(2), DEVICE).device == DEVICE
        assert upload(torch.ones(2), torch.device("cpu")).device.type == "cpu"
        assert mode.pinned == 1
