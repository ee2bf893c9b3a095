"""The nouns of the house: frozen values that every room may import and that import nothing of ours."""
