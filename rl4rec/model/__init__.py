"""Policies: histories to scores to slates."""
