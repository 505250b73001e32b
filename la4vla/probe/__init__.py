"""Does a policy follow the instruction? Cases with a known direction, conditions that mislead, scores, figures."""
