"""Files that are written: whole or not at all, tried before the work, kept when it fails."""
