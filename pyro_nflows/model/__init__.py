"""A Pyro model as a function: of its latents as one flat vector, of its arguments, of data that it simulates."""
