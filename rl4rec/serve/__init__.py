"""Serving: a saved policy answers with lists of items."""
