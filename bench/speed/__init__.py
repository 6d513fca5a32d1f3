"""What commands cost in two checkouts, in turns, and where their time goes."""
