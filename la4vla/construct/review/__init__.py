"""The review: who looks at which candidate (assign), what they are shown (session), on which page (app)."""
