"""Send a server what no decent client sends, and see that each gets the answer that is due."""
