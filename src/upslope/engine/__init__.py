"""One optimisation step: differentiate a loss, clip the gradient, take Adam's step."""
