"""Imported first by every script of pipelines/, for its effect: threads are chosen before torch or polars has any."""

from rl4rec._threads import choose_threads

choose_threads()
