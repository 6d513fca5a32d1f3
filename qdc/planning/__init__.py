"""What a compile will store, hold and compute, worked out from shapes alone: ``qdc plan``."""
