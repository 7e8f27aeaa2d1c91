"""`python -m app check`: tries what a deployment needs, and says what to do about what it does not find."""
