"""Files that are read: which kind a path is, what it refers to, what is said where it fails."""
