"""Layouts: the form in which pictures lie under an output root, and how one is read back."""
