"""The backend ``cpu``: computes from packed weights on a CPU."""
