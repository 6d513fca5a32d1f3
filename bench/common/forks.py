"""Processes that are forked after the imports, so that a case costs no start of Python."""

import os

import torch


def prepare_for_forks() -> None:
    """Keep this process to one thread: those of torch and of tokenizers do not outlive a fork."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
