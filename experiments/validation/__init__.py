"""How far the model can be believed: its predictions of runs that it was not calibrated on, against the runs themselves."""
