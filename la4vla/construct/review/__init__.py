"""The review: who looks at which candidate (assign), what they are shown (desk), and the page they see it on (app)."""
