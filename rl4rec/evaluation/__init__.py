"""Evaluation: exact ranks of the held-out items under named protocols, the same for every policy."""
