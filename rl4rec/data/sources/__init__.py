"""Where interactions come from: each source reads raw data into `user`, `item`, `time` rows."""
