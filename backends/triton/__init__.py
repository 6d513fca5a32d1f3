"""Packed modules for GPUs: Triton kernels that read bit planes, and nothing dense that stays."""
