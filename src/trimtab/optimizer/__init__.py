"""What a model can be turned into, what each of that is worth here, and the plan that is chosen."""
