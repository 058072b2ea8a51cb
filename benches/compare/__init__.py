"""What a scan costs beside everything else that could be done with the same weights."""
