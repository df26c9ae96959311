"""Which model is best: families compete on time-ordered folds, the winner is tested once."""
