"""Demonstration clips on disk and on their way to a `types.Batch`.

shards      the format: writer, index, reading         inspect     what a folder holds: numbers, checks, a page
order       position -> sample, pure arithmetic        mixture     samples of each source in each step
normalize   statistics and their use                   transforms  the chain that trainer and server share
augment     image augmentation of training samples     collate     samples -> Batch
setup       what a run's config means for its sources  reader      steps of one rank, in this process
loader      the same steps from a process of their own
"""
