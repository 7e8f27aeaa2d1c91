"""The web page at `/`. Its files are served without authentication; everything it shows comes from the API."""
