"""Models: loading, batches, and the one function that turns a batch into scores."""
