"""Labels: the classes that targets can name, and search among them."""
