"""From files of graded feedback to encoded groups; no torch."""
