"""What scorers of words and motions know: retrieval, and pairs that were spoiled on purpose."""
