"""Damage files that qdc reads, and see that each is read or refused: nothing else."""
