"""Online: files -> batches, in an order that is arithmetic."""
