"""The model registry: which policy is served, and what must be shown before another one takes its place."""
