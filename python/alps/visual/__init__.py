"""How a person sees scores and head sets: text, maps, figures, pages and tables."""
