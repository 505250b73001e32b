"""What probe and validation ask a policy: cases of clips with a direction, and the motion that answers them."""
