"""How well a network does with sensors that fail, lag or sit askew: conditions, measurement, table and picture."""
