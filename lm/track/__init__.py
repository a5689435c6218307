"""Where metrics go: console, metrics.jsonl, TensorBoard, the report."""
