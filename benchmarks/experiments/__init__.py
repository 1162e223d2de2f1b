"""The experiments: what the method's parts are worth, against baselines, at equal parameters and tokens."""
