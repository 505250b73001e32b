"""A vision-language model behind an OpenAI-compatible endpoint: requests, retries, and a cache of paid answers."""
