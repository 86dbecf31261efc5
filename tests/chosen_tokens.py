"""What a scorer's stand-in gives of whole rows of probabilities."""


def chosen(rows, tokens):
    """Of each image's rows [Q,V] the probabilities of each question's tokens."""
    return [
        [row[list(ids)] for row, ids in zip(answers, wanted, strict=True)]
        for answers, wanted in zip(rows, tokens, strict=True)
    ]
