"""Random programs against the models: campaigns, and what to compare with."""
