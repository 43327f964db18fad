"""Language models that look: questions to an image of any size."""
