"""The intermediate representation: a typed layer graph whose nodes passes annotate."""
