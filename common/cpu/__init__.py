"""Kernels for machines without a GPU: the numbers of transformers' own modules in less time and memory."""
