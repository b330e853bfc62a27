"""From rows of (user, item, time) to sequences of each user, split into training, validation and test."""
