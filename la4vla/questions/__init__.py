"""What a model that writes is asked: the wordings, shared by the rows it is trained on and the policy that asks it.

`wordings.yaml` has the texts, `wordings` the access to them.
"""
