"""One compile over several processes, with the collectives of torch.distributed."""
