"""What moves gradients between processes: one seam, two engines behind it."""
