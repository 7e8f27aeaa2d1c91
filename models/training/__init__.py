"""Training on labelled clips: examples mixed on the fly, and the loop that learns from them."""
