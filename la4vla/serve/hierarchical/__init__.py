"""A hierarchical policy (GPLA, FACTS 2.1): low-level instructions, and a policy that acts on them.

instructors: who says the instructions; policy: both behind `PolicyLike`; load: both out of folders.
"""
