"""Sources of labelled audio: kinds of corpora, each read as recordings."""
