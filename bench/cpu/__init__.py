"""What the backend ``cpu`` takes and gives: linears, a whole model, and other products."""
