"""Shows scores and head sets: in words, maps, figures, reports and tables."""
