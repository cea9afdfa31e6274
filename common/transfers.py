"""Tensors between the CPU and the device that computes, which neither is to wait for more often than it must."""

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`. CUDA fetches it by itself, from pinned memory, while the CPU goes on."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of one device as float32 on the CPU, which waits for the device once."""
    if not tensors:
        return []
    host = torch.cat([tensor.detach().float().flatten() for tensor in tensors]).cpu()
    parts = host.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
