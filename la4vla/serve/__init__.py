"""A trained policy behind observations and actions in raw units."""
