"""Models of a deployment: descriptions that workers announce or that ship with the front end, and living workers."""
