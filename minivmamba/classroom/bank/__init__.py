"""The exercises of the book, one module a lesson: `EXERCISES = {"02.1": Exercise(…), …}`.

Read a module beside its lesson only after solving the exercises: it holds the answers, and every
wrong answer we know.
"""
