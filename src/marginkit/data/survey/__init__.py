"""What a survey of graded data looks at, one topic a module; `data.summary.summarise` takes them all in one pass."""
