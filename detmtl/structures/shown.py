"""What people are shown unless they ask for more; a module that the command line can import at once."""

SURE = 0.3
"""Of what a model finds, boxes from this score on are drawn where nobody asks for others: a detector gives a
hundred boxes a picture, most of which it hardly believes, and the picture would be hidden below them."""
