"""The nouns of the house: frozen values that every room may import; they import none of ours."""
