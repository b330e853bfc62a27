"""rl4rec: train a language-model recommender on the metric it is judged by."""

__version__ = "0.1.0"
