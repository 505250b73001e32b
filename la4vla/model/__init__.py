"""The policy: InternVL backbone and flow head, sizes, tokenizer, what of it trains. Meets `data` in types.Batch."""
