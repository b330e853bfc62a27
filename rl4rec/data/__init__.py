"""From rows of (user, item, time) to leave-one-out splits of per-user sequences."""
