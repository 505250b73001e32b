"""A vision-language model behind an OpenAI-compatible endpoint.

conversation  questions until an answer can be used    endpoint   requests, their pace and their repetition
json_answer   the JSON in an answer                    responses  a cache of paid replies
"""
