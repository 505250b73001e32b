"""A hierarchical policy whose words fit its deeds (GPLA): `la4vla gpla` trains its parts, samples what it would say and
do, has it judged, and teaches the model that writes to prefer what fits."""
