"""What models that write know and say: likelihood of actions as text, questions they still answer, their sub-tasks."""
