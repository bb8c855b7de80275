"""Records and rows on disk: what they hold, how they are written and read, and who measures what. Nothing here needs torch."""
