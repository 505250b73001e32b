"""What is learned: one seam, a learner for each kind of module behind it."""
