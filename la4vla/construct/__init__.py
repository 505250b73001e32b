"""Demonstrations -> labelled language-action clips -> shards. Only `recording` imports `sim`, inside functions.

robots      what the numbers of a robot mean           readers     datasets of other formats as episodes
recording   demonstrations of scripted experts         propose     labelled spans: keyframes, labellers, the judge
scores      what people said of the candidates         review      the page they work on, exchange, agreement
filter      which candidates become clips              build       clips -> shards
ledger      one row an episode, so that steps resume   steps       the steps in order, from ledger to ledger
report      a page about all of it, and estimates      vocabulary  the words of labels and instructions
"""
