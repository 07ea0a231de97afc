"""The algebra: reward x target x objective. Pure functions of tensors; nothing else of marginkit is known here."""
