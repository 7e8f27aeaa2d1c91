"""`/`: the page. Its files are served as they lie here, to whoever asks; what it shows comes from the API."""
