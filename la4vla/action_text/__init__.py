"""Actions as text: displacements of a robot's hand out of its actions, codecs between displacements and text, and text
played as actions again.

    raw actions --space--> steps --merge--> rows --codec--> text --codec--> rows --play--> raw actions

`ActionText` (action_text.py) is the whole way there and back, made from one config that goes into manifests.
"""
