"""Types of new cells: neighbours whose types are known vote, calibrated, and within limits."""
