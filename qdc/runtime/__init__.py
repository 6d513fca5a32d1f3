"""What a model does once it is there: its weights, where it runs, and how it writes tokens."""
