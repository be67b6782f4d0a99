"""What verdicts depend on: a package a chapter, a module a question, each with its declared, tested experiments."""
