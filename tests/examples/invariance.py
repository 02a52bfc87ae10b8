NOTHING = {"translation": 0.0, "scale": 1.0, "rotation": 0.0}
