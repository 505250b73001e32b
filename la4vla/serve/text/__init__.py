"""A model that writes as a policy: sub-tasks, plans and action texts, one after the other, played as control steps.

writer: who writes; episode: where an episode stands; answers: what texts must look like; verify: whether a sub-task is
done; safety: a filter on commands; policy: all of it behind `PolicyLike`.
"""
