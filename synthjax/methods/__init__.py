"""How each kind of model learns and answers."""
