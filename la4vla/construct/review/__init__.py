"""The review: who looks at which candidate (assign), what they are shown (session), and the page they see it on (app)."""
