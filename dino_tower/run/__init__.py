"""What a run leaves behind, read again: its log, its curves, its page."""
